"""Language models: their residual streams, read in pairs of models, and what follows from their weights.

`language_model` loads models and reads, replaces and edits a stream (section 2), from GGUF files by `gguf_files`;
`checks` compares what was loaded with its files, and `agreement` with transformers; `harvest` reads the streams of two
models where their tokens meet (App. A); `generation` writes responses; `unembedding` gives logit weights (section 5);
`heads` computes attention by hand (section 5.2); `gradients` differentiates the loss by an edit of the stream; `costs`
counts FLOPs and bytes (App. D, Table 3); `half_precision` multiplies on CPUs that lack it.
"""
