"""Features that keep their role in the other model, and features that lose it (sections 5, 5.1 and 5.2, Apps. G to I).

`attribution` has Eq. 10; `structure`, `rewriting` and `known_words` tell structural features from semantic ones, and
`study` is that experiment; `entropy` and `entropy_effects` find features that write where the unembedding does not
read, `attention` features that switch heads off, and `twins` is the experiment with both; `contexts` shows where a
feature fires, `resampling` gives intervals over features.
"""
