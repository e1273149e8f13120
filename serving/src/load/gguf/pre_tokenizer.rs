//! The expressions by which byte-level tokenizers split a text before any merge.
//!
//! A GGUF file names them (`tokenizer.ggml.pre`); they are those of the tokenizer.json of the models. A text is split by each
//! expression in turn, and what no expression matches stays as it lies between the matches.

/// How a text is split, and how the pieces become tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct PreTokenizer {
    /// Expressions, first to last.
    pub(super) splits: &'static [&'static str],
    /// Whether a piece that is a token becomes it without merges.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the token for their beginning, unless the file says otherwise.
    pub(super) add_bos: bool,
}

/// The names that [`pre_tokenizer`] knows, for messages.
pub(super) const KNOWN: &str = "default, gpt-2, llama-bpe, qwen2, qwen35, smollm, starcoder, refact, command-r, falcon, tekken, \
                                gpt-4o, deepseek-llm, deepseek-coder, deepseek-v3 and others of the same expressions";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Cased letters, as DeepSeek lists them.
const DEEPSEEK_WORD: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ",
    r"-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ",
    r"-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);
const DEEPSEEK_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_HAN: &str = r"[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK_V3_HAN: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Returns how the tokenizer of a name splits, if the name is known.
pub(super) fn pre_tokenizer(name: &str) -> Option<PreTokenizer> {
    let (splits, ignore_merges, add_bos): (&'static [&'static str], bool, bool) = match name {
        "default" => (&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false, false),
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" | "mellum" | "a.x-4.0" | "modern-bert" => {
            (&[GPT2], false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            (&[LLAMA3], true, true)
        }
        "glm4" => (&[LLAMA3], true, false),
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => (&[LLAMA3], false, false),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan" | "solar-open" => (&[QWEN2], false, false),
        "qwen35" => (&[QWEN35], false, false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            (&[r"\p{N}", GPT2], false, false)
        }
        "falcon" => (&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], false, false),
        "tekken" => (&[TEKKEN], true, true),
        "gpt-4o" | "llama4" => (&[GPT4O], false, false),
        "deepseek-llm" => (&[r"[\r\n]", DEEPSEEK_WORD, DEEPSEEK_SIGNS, r"\s+$", DEEPSEEK_HAN, r"\p{N}+"], false, false),
        "deepseek-coder" => (&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_HAN, r"\p{N}"], false, false),
        "deepseek-v3" => (&[r"\p{N}{1,3}", DEEPSEEK_V3_HAN, DEEPSEEK_V3], false, false),
        _ => return None,
    };
    Some(PreTokenizer { splits, ignore_merges, add_bos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_tokenizer_is_known() {
        let names = KNOWN.split(" and ").next().unwrap();
        for name in names.split([',', ' ']).filter(|name| !name.is_empty()) {
            assert!(pre_tokenizer(name).is_some(), "{name}");
        }
        assert!(pre_tokenizer("nonsense").is_none());
    }
}
