//! Models from files: weights, configuration, tokenizer and chat template.
