"""Streams at the last token of prompts, read one prompt at a time, for the tests of steering."""

import torch


def naive_last(model, layer, prompts):
    """One prompt at a time."""
    begin = model.tokenizer.bos_token_id
    rows = []
    for prompt in prompts:
        ids = [begin, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        rows.append(model.residuals(torch.tensor([ids]), [layer])[layer][0, -1])
    return torch.stack(rows)
