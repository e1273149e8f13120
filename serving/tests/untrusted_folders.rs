//! Damaged and hostile model folders: loading them and running what loads ends in an answer or an error, never in a panic.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use refrain_serving::device::Device;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::load::{ChatTemplate, load_folder};
use refrain_serving::step::{Allowed, KvWrite, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource};
use refrain_serving::{Error, Sampling, Tokenizer};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures")
}

/// A copy of a fixture with its tokenizer, to be damaged.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files = fs::read_dir(fixtures().join(name)).unwrap().map(|entry| entry.unwrap().path());
    for file in files.chain([fixtures().join("tokenizer.json")]) {
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

/// Loads the folder and, where that works, runs a few tokens. Whatever fails must be an error of the kind that says so.
fn load_and_run(folder: &Path) -> Result<(), TestCaseError> {
    let model = match load_folder(folder) {
        Ok(model) => model,
        Err(error) => {
            prop_assert!(matches!(error, Error::Weights { .. }), "{error:?}");
            return Ok(());
        }
    };
    model.tokenizer.render_chat("system", "user").ok();
    let options = CpuOptions { threads: NonZeroUsize::new(1), kv_bytes: 1 << 20, activations: Activations::default() };
    let mut device = match CpuDevice::new(&model.config, model.weights.as_ref(), options) {
        Ok(device) => device,
        Err(error) => {
            prop_assert!(matches!(error, Error::Invalid(_) | Error::OutOfMemory(_) | Error::Weights { .. }), "{error:?}");
            return Ok(());
        }
    };
    let plan = StepPlan {
        tokens: (1..=5).map(TokenSource::Host).collect(),
        positions: (0..5).collect(),
        writes: (0..5).map(|token| KvWrite { token, page: PageId(0), offset: token }).collect(),
        rows: vec![RowSpan { tokens: 0..5, pages: 0..1 }],
        block_tables: vec![PageId(0)],
        sample: vec![SampleRow {
            token: 4,
            slot: RowSlot(0),
            allowed: Allowed::All,
            sampling: Sampling::GREEDY,
            draw: 0,
            top_logits: 1,
            logprobs: None,
        }],
        ..StepPlan::default()
    };
    let ticket = device.launch(&plan);
    prop_assert!(ticket.is_ok(), "{ticket:?}");
    prop_assert!(device.poll(ticket.unwrap(), &mut StepResult::default()).unwrap());
    Ok(())
}

/// Values that a hostile file may hold anywhere.
fn value() -> impl Strategy<Value = Value> {
    let numbers = [json!(0), json!(1), json!(2), json!(3), json!(7), json!(8), json!(1 << 24), json!(u64::MAX)];
    let odd = [json!(-1), json!(0.5), json!(-0.0), json!(1e308), json!(1e-308), json!(null), json!(true), json!("")];
    let texts = [json!("yarn"), json!("longrope"), json!("llama3"), json!("sliding_attention"), json!([]), json!({})];
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let lists = [json!(vec![1; 4]), json!(vec![0; 3]), json!(vec!["full_attention"; 2]), json!([f64::MAX]), deep];
    select([&numbers[..], &odd, &texts, &lists].concat())
}

/// Sets one value somewhere in `json`: the one that `at` points to, counted through all objects.
fn replace(json: &mut Value, at: Index, value: Value) {
    let mut paths = Vec::new();
    list_paths(json, String::new(), &mut paths);
    let path = at.get(&paths).clone();
    *json.pointer_mut(&path).unwrap() = value;
}

fn list_paths(json: &Value, path: String, paths: &mut Vec<String>) {
    for (key, value) in json.as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        list_paths(value, path.clone(), paths);
        paths.push(path);
    }
}

/// Changes bytes of a file: overwrites some, cuts it, or puts something in between.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), select(b"0123456789-{}[]\":,.eE\\ \x00\xff".to_vec())).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => any::<Index>().prop_map(Damage::Cut),
        2 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

/// Damages the first `len` bytes of `bytes`.
fn apply(bytes: &mut Vec<u8>, len: usize, damage: Damage) {
    let len = len.min(bytes.len());
    if len == 0 {
        return;
    }
    match damage {
        Damage::Set(at, byte) => bytes[at.index(len)] = byte,
        Damage::Cut(at) => bytes.truncate(at.index(len)),
        Damage::Insert(at, more) => {
            let at = at.index(len);
            bytes.splice(at..at, more);
        }
    }
}

const MODELS: [&str; 6] = ["llama_gqa", "llama_yarn", "qwen2_window", "qwen3_layers", "phi3_partial", "smollm3"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_value_in_a_configuration(
        name in select(MODELS.to_vec()),
        changes in prop::collection::vec((any::<Index>(), value()), 1..4),
    ) {
        let folder = copy(name);
        let path = folder.path().join("config.json");
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (at, value) in changes {
            replace(&mut json, at, value);
        }
        fs::write(&path, json.to_string()).unwrap();
        load_and_run(folder.path())?;
    }

    #[test]
    fn any_bytes_in_small_files(
        name in select(vec!["config.json", "model.safetensors.index.json", "tokenizer_config.json", "generation_config.json"]),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let folder = copy("llama_sharded");
        let config = json!({"eos_token": {"content": "</s>"}, "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"});
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [257, 256]}"#).unwrap();
        let path = folder.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        for damage in damages {
            let len = bytes.len();
            apply(&mut bytes, len, damage);
        }
        fs::write(&path, bytes).unwrap();
        load_and_run(folder.path())?;
    }

    #[test]
    fn any_bytes_in_the_header_of_weights(
        name in select(vec!["llama_gqa", "phi3_partial"]),
        damages in prop::collection::vec(damage(), 1..5),
    ) {
        let folder = copy(name);
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for damage in damages {
            apply(&mut bytes, header, damage);
        }
        fs::write(&path, bytes).unwrap();
        load_and_run(folder.path())?;
    }

    /// The header stays JSON of the right form, and lies about one tensor.
    #[test]
    fn any_lie_about_a_tensor(
        name in select(vec!["llama_gqa", "phi3_partial"]),
        at in any::<Index>(),
        lie in prop_oneof![
            value().prop_map(|value| ("dtype", value)),
            select(vec!["F32", "BF16", "F64", "I8", "F8_E4M3", "F4"]).prop_map(|dtype| ("dtype", json!(dtype))),
            prop::collection::vec(select(vec![0, 1, 8, 32, 264, 1 << 33, u64::MAX]), 0..4).prop_map(|shape| ("shape", json!(shape))),
            prop::array::uniform2(select(vec![0, 1, 64, 4096, 1 << 40, u64::MAX])).prop_map(|ends| ("data_offsets", json!(ends))),
        ],
    ) {
        let folder = copy(name);
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        let names: Vec<String> = header.as_object().unwrap().keys().filter(|key| *key != "__metadata__").cloned().collect();
        header[at.get(&names)][lie.0] = lie.1;
        let header = header.to_string();
        let mut lying = (header.len() as u64).to_le_bytes().to_vec();
        lying.extend(header.as_bytes());
        lying.extend(&bytes[end..]);
        fs::write(&path, lying).unwrap();
        load_and_run(folder.path())?;
    }

    /// Pieces of Jinja in any order.
    #[test]
    fn any_chat_template(pieces in prop::collection::vec(select(PIECES.to_vec()), 0..24)) {
        let template = ChatTemplate::new(&Value::Null, Some(&pieces.concat()));
        prop_assert!(matches!(&template, Ok(_) | Err(Error::Invalid(_))));
        if let Ok(template) = template {
            let text = template.render("be brief", "hi");
            prop_assert!(matches!(&text, Ok(_) | Err(Error::Invalid(_))));
        }
    }
}

const PIECES: [&str; 34] = [
    "{% for m in messages %}",
    "{% for i in range(99999) %}",
    "{% endfor %}",
    "{% if ",
    "{% elif ",
    "{% else %}",
    "{% endif %}",
    "{% set x = ",
    "{% set x %}",
    "{% endset %}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(x) }}",
    "{{ ",
    " }}",
    " %}",
    "{#",
    "#}",
    "messages",
    "[0]",
    "['role']",
    ".content",
    " == 'user'",
    " is defined",
    " not in ",
    "x",
    " + ",
    " ~ ",
    " * 999999999",
    "|tojson",
    "|join(messages)",
    "raise_exception('no')",
    "strftime_now('%Y')",
    "namespace(a=1)",
];

#[test]
fn deep_nesting_is_an_error() {
    let nested = [
        ("", "{% if x %}", "{% endif %}", ""),
        ("{{ ", "(", ")", " }}"),
        ("{{ ", "[", "]", " }}"),
        ("{{ ", "{0:", "}", " }}"),
        ("{{ ", "f(", ")", " }}"),
    ];
    for (before, open, close, after) in nested {
        let times = 60_000 / (open.len() + close.len());
        let template = format!("{before}{}1{}{after}", open.repeat(times), close.repeat(times));
        let template = ChatTemplate::new(&Value::Null, Some(&template));
        assert!(matches!(template, Err(Error::Invalid(_))), "{open}");
    }
    let folder = copy("llama_gqa");
    for name in ["config.json", "tokenizer_config.json", "generation_config.json"] {
        let path = folder.path().join(name);
        let before = fs::read(&path).ok();
        fs::write(&path, format!("{{\"eos_token_id\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000))).unwrap();
        let error = load_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("not JSON"), "{error}");
        before.map_or_else(|| fs::remove_file(&path), |bytes| fs::write(&path, bytes)).unwrap();
    }
    load_folder(folder.path()).unwrap();
}

/// Chains are parsed, compiled and dropped by recursion; values that a loop wraps again and again are printed so.
/// A third of the longest template, since the time to compile a chain grows with its square.
#[test]
fn long_chains_and_deep_values_do_not_use_up_the_stack() {
    let chains = [
        ("{{ ", "not ", "x }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ x", ".a", " }}"),
        ("{{ x", "[0]", " }}"),
        ("{{ x", "|e", " }}"),
        ("{{ 1", " if 0", " }}"),
        ("{{ ", "1 if 0 else ", "1 }}"),
        ("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        ("{{ x ", " and x", " }}"),
        ("{{ 1 ", " < 1", " }}"),
    ];
    for (before, link, after) in chains {
        let template = format!("{before}{}{after}", link.repeat(24_000 / link.len()));
        if let Ok(template) = ChatTemplate::new(&Value::Null, Some(&template)) {
            template.render("", "hi").ok();
        }
    }
    for shown in ["", "{{ ns.x }}", "{{ ns.x|tojson }}", "{{ ns.x|string|length }}", "{{ ns.x == ns.x }}"] {
        let template = "{% set ns = namespace(x=1) %}{% for i in range(6000) %}{% set ns.x = [ns.x] %}{% endfor %}";
        let template = ChatTemplate::new(&Value::Null, Some(&format!("{template}{shown}"))).unwrap();
        template.render("", "hi").ok();
    }
}

#[test]
fn overlong_files_are_refused_before_they_are_read() {
    let folder = copy("llama_gqa");
    for name in ["config.json", "tokenizer.json", "model.safetensors.index.json", "chat_template.jinja"] {
        let path = folder.path().join(name);
        let before = fs::read(&path).ok();
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = load_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("too many"), "{error}");
        before.map_or_else(|| fs::remove_file(&path), |bytes| fs::write(&path, bytes)).unwrap();
    }
}
