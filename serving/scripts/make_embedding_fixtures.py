"""Makes the tiny embedding models of tests/fixtures/embeddings, with the vectors that transformers computes for some texts.

    python serving/scripts/make_embedding_fixtures.py serving/tests/fixtures/embeddings

Weights are random and rounded to half precision. Needs torch, transformers and tokenizers. Beside each model lies vectors.json:
texts, their tokens, and their vectors.

    python serving/scripts/make_embedding_fixtures.py --real FOLDER

writes vectors.json for a real sentence-transformers model into its folder, for the test that REFRAIN_MINILM switches on.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (AutoModel, AutoTokenizer, BertConfig, BertModel, MistralConfig, MistralModel, PreTrainedTokenizerFast,
                          Qwen3Config, Qwen3Model)

TEXTS = [
    "a b", "the red fox", "", "The RED fox, unheard-of!", "fox " * 20, "b", "Größe 東京 🦊", "say [SEP] and [CLS]", "x\ty\n z",
]

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I get my money back for an order that never arrived?",
    "Refunds are paid within fourteen days of receiving the returned goods.",
    "A semiconductor's band gap decides at which wavelength it absorbs light.",
    "She sells sea shells by the sea shore, and the shells she sells are surely sea shells.",
    "Der Zug nach München fährt heute von Gleis sieben ab.",
    "El gato duerme en el sofá mientras llueve.",
    "東京は日本の首都であり、世界最大の都市のひとつである。",
    "Привет, как дела? Сегодня хорошая погода.",
    "Naïve café façade — déjà vu, coöperate, Ångström, Øresund, œuvre.",
    "🦊🐳 emoji and ZWJ families: 👩‍👩‍👧‍👦, flags 🇩🇪🇯🇵, skin tones 👍🏽",
    "تعلّم الآلة فرع من فروع الذكاء الاصطناعي.",
    "हिन्दी में एक छोटा सा वाक्य।",
    "a\u0301 combining, \ufb01 ligature, \u00ad soft hyphen, \u200b zero width, \u3000 ideographic space",
    "ALL CAPS AND     many    spaces\tand\nline\r\nbreaks",
    "x", "", " ", "...", "?!?!", "0123456789 3.14159 1e-9 0xdeadbeef", "https://example.org/path?query=1&other=two#part",
    "SELECT title FROM films WHERE ai_filter('clearly positive', review) ORDER BY rating DESC LIMIT 10;",
    "{\"title\": \"Alien\", \"year\": 1979, \"tags\": [\"horror\", \"space\"]}",
    "say [SEP] and [CLS] and [MASK] aloud", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "The film is a masterpiece of tension; its two hours pass like twenty minutes.",
    "Dull, predictable and far too long. I left before the end.",
    "Customer reports that the device overheats after the latest firmware update and shuts down.",
    "The committee approved the budget for the next fiscal year by a narrow majority.",
]


def real_texts():
    """Returns 55 texts of one to about 250 tokens."""
    long = [" ".join(SENTENCES[i:i + n]) for i, n in [(0, 4), (2, 5), (22, 6), (17, 11), (20, 10)]]
    pairs = [f"{a} {b}" for a, b in zip(SENTENCES[:20], SENTENCES[10:])]
    return SENTENCES + pairs + long


def bert_tokenizer(words):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + words
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64)


def decoder_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    merges = [("f", "o"), ("fo", "x"), ("Ġ", "fox"), ("t", "h"), ("th", "e")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=64)
    end = fast.convert_tokens_to_ids("<|endoftext|>")
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)])
    return fast


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 2 else 0.1
            values = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_((values + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)).half().float())
    return model.eval()


def pool(states, mode):
    if mode == "mean":
        vector = states.mean(0)
    else:
        vector = states[0] if mode == "cls" else states[-1]
    return torch.nn.functional.normalize(vector, dim=0)


def vectors(model, tokenizer, texts, mode, limit, plain):
    """Special tokens in a text are ordinary text for us: `plain` encodes without any, and the frame is put around it."""
    frame = tokenizer("a", add_special_tokens=True)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = frame.index(bare[0])
    before, after = frame[:at], frame[at + len(bare):]
    found = []
    for text in texts:
        ids = before + plain(text) + after
        if len(ids) > limit:
            continue
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found.append({"text": text, "ids": ids, "vector": [float(f"{x:.8g}") for x in pool(states.float(), mode)]})
    return found


def without_added_tokens(tokenizer):
    """Returns an encoder that knows no added token, as ours for row data."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    plain = Tokenizer.from_str(json.dumps(spec))
    return lambda text: plain.encode(text).ids


def write(folder, model, tokenizer, mode, flags, max_tokens):
    folder.mkdir(parents=True, exist_ok=True)
    expected = vectors(model, tokenizer, TEXTS, mode, max_tokens, without_added_tokens(tokenizer))
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"]
    pooling = {"word_embedding_dimension": model.config.hidden_size}
    pooling |= {f"pooling_mode_{name}": name == flags for name in names}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=1) + "\n")
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [{"idx": int(i), "name": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens, "do_lower_case": False}) + "\n")
    (folder / "vectors.json").write_text(json.dumps(expected) + "\n")


def tiny(folder):
    torch.manual_seed(0)
    words = ["a", "b", "the", "red", "fox", "##es", "un", "##heard", "of", "-", "!", ",", "[", "]", "sep", "cls", "say", "and",
             "x", "y", "z", "gr", "##o", "##ße", "東", "京"]
    common = dict(vocab_size=len(words) + 5, max_position_embeddings=64, num_attention_heads=4)
    bert = BertConfig(**common, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    write(folder / "bert", randomise(BertModel(bert, add_pooling_layer=False), 1), bert_tokenizer(words), "mean", "mean_tokens", 48)
    tanh = BertConfig(**common, hidden_size=20, num_hidden_layers=1, intermediate_size=24, hidden_act="gelu_new",
                      layer_norm_eps=1e-5)
    write(folder / "bert-cls", randomise(BertModel(tanh, add_pooling_layer=False), 2), bert_tokenizer(words), "cls", "cls_token", 64)
    tokenizer = decoder_tokenizer()
    common = dict(vocab_size=len(tokenizer), num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                  max_position_embeddings=128, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    qwen = Qwen3Config(**common, hidden_size=24, num_hidden_layers=2, intermediate_size=32, tie_word_embeddings=True)
    write(folder / "qwen3", randomise(Qwen3Model(qwen), 3), tokenizer, "last", "lasttoken", 128)
    mistral = MistralConfig(**common, hidden_size=24, num_hidden_layers=2, intermediate_size=32, sliding_window=None)
    write(folder / "mistral", randomise(MistralModel(mistral), 4), tokenizer, "last", "lasttoken", 100)
    # As the published folders of Qwen3-Embedding name it; those of E5-Mistral keep the model's own name.
    config = json.loads((folder / "qwen3" / "config.json").read_text())
    config["architectures"] = ["Qwen3ForCausalLM"]
    (folder / "qwen3" / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def real(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    limit = json.loads((Path(folder) / "sentence_bert_config.json").read_text())["max_seq_length"]
    found = vectors(model, tokenizer, real_texts(), "mean", limit, without_added_tokens(tokenizer))
    (Path(folder) / "vectors.json").write_text(json.dumps(found) + "\n")
    print(f"{len(found)} texts, up to {max(len(row['ids']) for row in found)} tokens")


if __name__ == "__main__":
    real(sys.argv[2]) if sys.argv[1] == "--real" else tiny(Path(sys.argv[1]))
