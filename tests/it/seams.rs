//! Segments that are tokenised apart and joined are the tokens of the whole prompt: with the bundled tokenizer and with
//! tokenizers of the kinds that models bring, trained here on whole prompts so that they merge wherever they can.

use std::sync::{Arc, OnceLock};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use proptest::prelude::*;
use refrain::Refrain;
use refrain::serving::Tokenizer as _;
use refrain::serving::load::{BundledModel, ChatTemplate, HfTokenizer, bundled};
use refrain_optimizer::LlmNode;
use refrain_udf::{LlmCall, Place, PromptLayout};
use serde_json::{Value, json};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use crate::support::{real_table, rows, session};

/// Three fields, and a template with values in all the places that are hard to cut.
const CALLS: [&str; 2] = [
    "ai_filter('Is it good?', title, body, price)",
    "ai_filter('T: {0}, then ({1}): {2}s or\n\n{0}-x\n{1} End', title, body, price)",
];

const CONTROL: [&str; 4] = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// How models split text before they merge.
const PATTERNS: [(&str, &str); 2] = [
    (
        "Llama 3",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "Qwen 2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

struct Case {
    name: String,
    tokenizer: Arc<HfTokenizer>,
    layouts: Vec<PromptLayout>,
}

impl Case {
    /// Compares joined segments with the whole prompt, in both modes.
    fn check(&self, values: &[String], order: &[usize]) -> Result<(), TestCaseError> {
        let tokenizer = self.tokenizer.as_ref();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        for layout in &self.layouts {
            let mut tokens = layout.head().to_vec();
            if layout.n_parts() == 0 {
                for (position, field) in order.iter().enumerate() {
                    let place = Place::of(position, order.len());
                    tokens.extend(layout.field_segment(tokenizer, *field, values[*field], place).iter());
                }
            }
            for part in 0..layout.n_parts() {
                let value = layout.part_input(part).map_or("", |input| values[input]);
                tokens.extend(layout.part_segment(tokenizer, part, value).iter());
            }
            tokens.extend(layout.tail().iter());
            let whole = layout.prompt_text(order, &values);
            prop_assert_eq!(&tokens, &tokenizer.encode_control(&whole), "{}: {:?}", self.name, whole);
        }
        Ok(())
    }
}

/// The bound calls, as the optimizer makes them of SQL.
async fn calls() -> Vec<LlmCall> {
    let (db, _) = session(&[]).await;
    rows(&db, "create table t as select 'a' title, 'b' body, 'c' price").await.unwrap();
    let mut calls = vec![];
    for call in CALLS {
        calls.push(call_of(&db, call).await);
    }
    calls
}

async fn call_of(db: &Refrain, call: &str) -> LlmCall {
    let query = db.sql(&format!("select {call} from t")).await.unwrap();
    let plan = db.context().state().optimize(query.logical_plan().unwrap()).unwrap();
    let mut found = None;
    plan.apply(|plan| {
        found = found.take().or_else(|| LlmNode::from_plan(plan).map(|node| node.calls[0].call.clone()));
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    found.unwrap()
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let calls = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(calls());
        let mini = bundled(BundledModel::Mini).unwrap().tokenizer;
        let corpus = corpus(&calls, &mini);
        let mut tokenizers = vec![("mini".to_owned(), mini)];
        for (name, pattern) in PATTERNS {
            let split =
                Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false).unwrap();
            let parts = vec![split.into(), ByteLevel::new(false, false, false).into()];
            tokenizers.push((name.to_owned(), trained(Sequence::new(parts).into(), ByteLevel::default().into(), &corpus)));
        }
        let byte_level = ByteLevel::new(false, false, true);
        tokenizers.push(("GPT-2".to_owned(), trained(byte_level.into(), ByteLevel::default().into(), &corpus)));
        // SentencePiece learns from lines, and no piece has a space in its middle.
        let lines = Split::new(SplitPattern::String("\n".to_owned()), SplitDelimiterBehavior::Isolated, false).unwrap();
        let parts = vec![lines.into(), Metaspace::new('▁', PrependScheme::Never, true).into()];
        let decoder = DecoderWrapper::ByteFallback(ByteFallback::new());
        tokenizers.push(("SentencePiece".to_owned(), trained(Sequence::new(parts).into(), decoder, &corpus)));
        let layouts =
            |tokenizer: &HfTokenizer| calls.iter().map(|call| PromptLayout::new(call, tokenizer).unwrap()).collect();
        tokenizers.into_iter().map(|(name, tokenizer)| Case { layouts: layouts(&tokenizer), name, tokenizer }).collect()
    })
}

/// Whole prompts over texts with words, signs, numbers, spaces and lines beside every seam.
fn corpus(calls: &[LlmCall], tokenizer: &HfTokenizer) -> Vec<String> {
    let words = [
        "It broke.",
        "\"quoted\"",
        "a\n\nb",
        "  two",
        "end  ",
        "1234",
        "{",
        "}",
        ",",
        "Übung",
        "x:",
        "",
        "don't",
        "\\n",
        "日本",
    ];
    let mut corpus = vec![];
    for call in calls {
        let layout = PromptLayout::new(call, tokenizer).unwrap();
        for a in words {
            for b in words {
                let values = [a, b, &format!("{a}{b}")].map(|text| Value::from(text).to_string());
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                corpus.push(layout.prompt_text(&[0, 1, 2], &values));
                corpus.push(layout.prompt_text(&[2, 0, 1], &values));
            }
        }
    }
    corpus
}

fn trained(pre_tokenizer: PreTokenizerWrapper, decoder: DecoderWrapper, corpus: &[String]) -> Arc<HfTokenizer> {
    let control = ["<unk>"].iter().chain(&CONTROL).map(|token| AddedToken::from(*token, true));
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(900)
        .special_tokens(control.collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect());
    let model = BPE::builder().unk_token("<unk>".to_owned()).build().unwrap();
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(model));
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer)).with_decoder(Some(decoder));
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer.build()), corpus.iter()).unwrap();
    let json = with_byte_fallback(serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap());
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>";
    let chat = ChatTemplate::new(&json!({ "chat_template": template }), None).unwrap();
    Arc::new(HfTokenizer::from_bytes(json.to_string().as_bytes(), chat, vec![4]).unwrap())
}

/// Adds a token for each byte, which stands where no other token does.
fn with_byte_fallback(mut json: Value) -> Value {
    json["model"]["byte_fallback"] = json!(true);
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let first = vocab.len();
    vocab.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), json!(first + byte))));
    json
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn joined_segments_are_the_tokens_of_the_whole(
        texts in prop::collection::vec(prop_oneof![
            "\\PC{0,16}", "[ \n\t\"{},.:a-c1-3\\\\é]{0,12}", "([a-cé.,\"\n]{0,4} {0,2}){20,30}",
        ], 3),
        order in Just(vec![0_usize, 1, 2]).prop_shuffle(),
        count in 1_usize..=3,
    ) {
        // A control token within a value is text in a prompt and a token in the whole.
        prop_assume!(!texts.iter().any(|text| text.contains("<|") || text.contains("<unk>")));
        let values: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
        for case in cases() {
            case.check(&values, &order[..count])?;
        }
    }
}

/// The cells of real tables, three at a time.
#[tokio::test(flavor = "multi_thread")]
async fn joined_cells_of_real_tables() {
    let (db, _) = session(&[]).await;
    let tables = ["movies", "products", "beer", "pdmx_standin_music", "squad_rag", "fever_rag"];
    let found: Vec<_> = tables.iter().filter_map(|name| real_table(name)).collect();
    if found.is_empty() {
        println!("skipped: neither REFRAIN_DATA nor ../shared/data is there");
    }
    for table in found {
        let query = format!("select * from '{}' limit 60", table.display());
        let cells: Vec<String> =
            rows(&db, &query).await.unwrap().iter().flat_map(|row| row.split('|')).map(json_text).collect();
        tokio::task::spawn_blocking(move || {
            for values in cells.chunks_exact(3) {
                cases().iter().for_each(|case| case.check(values, &[1, 2, 0]).unwrap());
            }
        })
        .await
        .unwrap();
    }
}

fn json_text(cell: &str) -> String {
    Value::from(cell.replace("<|", "< |")).to_string()
}
