//! Files of `quantize`: they load by mapping with the bits of quantising while loading, and what is wrong in one is named.

use std::path::Path;

use octavo_kernels::{BLOCK_SIZE, Kernels, QuantScheme, SeqView, WeightDtype};
use octavo_model::{
    Batch, Dtype, KvPool, Model, ModelError, Quantized, Scratch, WeightFormat, open, quantization_config,
    quantize, read_entries, read_family,
};
use serde_json::{Map, Value, json};

const AUTO: WeightFormat = WeightFormat { dtype: WeightDtype::INT8, error_budget: Some(0.05) };
const HIDDEN: usize = 72;
const TOKENS: [u32; 5] = [3, 1, 4, 1, 5];

/// Values in -1..1 that differ from tensor to tensor.
fn values(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(7_u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Data begins at a multiple of 64.
fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let mut text = header.to_string();
    text.push_str(&" ".repeat((8 + text.len()).next_multiple_of(64) - 8 - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat()
}

/// A folder with a small model of odd sizes; `change` edits values before they are written.
fn write_model(folder: &Path, tied: bool, change: impl Fn(&str, &mut Vec<f32>)) {
    let config = json!({"architectures": ["Qwen3ForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 24, "num_hidden_layers": 2, "intermediate_size": 137, "vocab_size": 83,
        "tie_word_embeddings": tied, "attention_bias": true, "dtype": "float32"});
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![83, HIDDEN])];
    if !tied {
        tensors.push(("lm_head.weight".into(), vec![83, HIDDEN]));
    }
    tensors.push(("model.norm.weight".into(), vec![HIDDEN]));
    for i in 0..2 {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        for (name, rows, columns) in
            [("q", 72, HIDDEN), ("k", 24, HIDDEN), ("v", 24, HIDDEN), ("o", HIDDEN, 72)]
        {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, columns]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        for (name, rows, columns) in [("gate", 137, HIDDEN), ("up", 137, HIDDEN), ("down", HIDDEN, 137)] {
            add(&format!("mlp.{name}_proj.weight"), &[rows, columns]);
        }
        for (name, size) in [
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", 24),
            ("self_attn.k_norm", 24),
        ] {
            add(&format!("{name}.weight"), &[size]);
        }
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let mut numbers = values(&name, shape.iter().product());
        change(&name, &mut numbers);
        let begin = data.len();
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    std::fs::write(folder.join("config.json"), config.to_string()).expect("write");
    std::fs::write(folder.join("model.safetensors"), safetensors(&Value::Object(header), &data))
        .expect("write");
}

fn kernels() -> Kernels {
    Kernels::new(2, None).expect("kernels")
}

/// Quantises `from` into the folder `to`.
fn quantized(from: &Path, to: &Path, format: WeightFormat) -> Quantized {
    let from = &*open(from).expect("folder");
    let family = read_family(from).expect("family");
    let made =
        quantize(&kernels(), from, &family, format, &to.join("model.safetensors"), "a model", "a test");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.path().join("config.json")).expect("config"))
            .expect("JSON");
    let made = made.expect("quantize");
    config["quantization_config"] = quantization_config(made.scheme);
    std::fs::write(to.join("config.json"), config.to_string()).expect("write");
    made
}

fn load(folder: &Path, format: WeightFormat) -> Result<Model, ModelError> {
    let folder = &*open(folder)?;
    Model::load(&kernels(), folder, read_family(folder)?, format)
}

/// The bits of the logits of every token.
fn logits(model: &Model) -> Vec<u32> {
    let (kernels, mut scratch) = (kernels(), Scratch::default());
    let mut kv = KvPool::new(model.spec(), 1, Dtype::Float32.into()).expect("pool");
    let count = TOKENS.len();
    let positions = (0..count as u32).collect::<Vec<_>>();
    assert!(count <= BLOCK_SIZE);
    let seq =
        SeqView { query_start: 0, query_len: count, context_len: count, block_table: &[0], open_blocks: &[] };
    let seqs = [seq];
    let batch = Batch::new(&TOKENS, &positions, &positions, &seqs);
    model.forward(&kernels, &mut kv, &batch, &mut scratch);
    let mut out = vec![0.0; count * model.spec().vocab];
    model.logits(&kernels, &positions, &mut scratch, &mut out);
    out.iter().map(|x| x.to_bits()).collect()
}

/// Two folders: a model and its quantised form.
fn folders(tied: bool) -> (tempfile::TempDir, tempfile::TempDir) {
    let (plain, packed) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    write_model(plain.path(), tied, |_, _| ());
    quantized(plain.path(), packed.path(), AUTO);
    (plain, packed)
}

#[test]
fn bits_are_those_of_quantising_while_loading() {
    for tied in [true, false] {
        let (plain, packed) = folders(tied);
        let (want, got) =
            (load(plain.path(), AUTO).expect("plain"), load(packed.path(), AUTO).expect("packed"));
        assert_eq!(logits(&got), logits(&want), "tied: {tied}");
        assert_eq!(got.weight_bytes(), want.weight_bytes());
        assert_eq!((got.stored_dtype(), got.warnings().len()), (want.stored_dtype(), 0));
        assert!(want.origin().is_none());
        let origin = got.origin().expect("origin");
        assert_eq!((origin.source.as_str(), origin.made_by.as_str()), ("a model", "a test"));
    }
}

/// Edits config.json.
fn config(folder: &Path, edit: &dyn Fn(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    edit(&mut config);
    std::fs::write(path, config.to_string()).expect("write");
}

/// Files of version 1 name no rotation: their codes are of the columns as they are.
#[test]
fn files_of_version_1_are_not_rotated() {
    let (plain, packed) = folders(true);
    let rotated = logits(&load(packed.path(), AUTO).expect("rotated"));
    let old = tempfile::tempdir().expect("dir");
    let unrotated = WeightFormat { dtype: WeightDtype::INT8_UNROTATED, error_budget: Some(0.05) };
    quantized(plain.path(), old.path(), unrotated);
    let want = logits(&load(plain.path(), unrotated).expect("plain"));
    assert_ne!(want, rotated, "the rotation changes nothing");
    assert_eq!(logits(&load(old.path(), AUTO).expect("version 2, not rotated")), want);
    config(old.path(), &|c| {
        c["quantization_config"]["version"] = json!(1);
        c["quantization_config"].as_object_mut().expect("an object").remove("rotation");
    });
    let file = old.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("read");
    for (from, to) in
        [(r#""version":"2""#, r#""version":"1""#), (r#""rotation":"none","#, "                  ")]
    {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).expect(from);
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(&file, bytes).expect("write");
    assert_eq!(logits(&load(old.path(), AUTO).expect("version 1")), want);
}

#[test]
fn what_is_spared_stays_spared() {
    let (plain, packed) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    write_model(plain.path(), true, |name, values| match name {
        // A channel that a norm turns down and the projections turn up.
        "model.layers.1.post_attention_layernorm.weight" => values[5] = 1e-3,
        "model.layers.1.mlp.up_proj.weight" => {
            values.iter_mut().skip(5).step_by(HIDDEN).for_each(|v| *v *= 1e3)
        }
        _ => {}
    });
    let made = quantized(plain.path(), packed.path(), AUTO);
    assert_eq!(made.kept_in_bf16.len(), 2, "{:?}", made.kept_in_bf16);
    let (want, got) = (load(plain.path(), AUTO).expect("plain"), load(packed.path(), AUTO).expect("packed"));
    assert_eq!(logits(&got), logits(&want));
    // JSON may move an error by its last bit.
    for (got, want) in got.kept_in_bf16().iter().zip(want.kept_in_bf16()) {
        assert!(got.tensor == want.tensor && (got.error - want.error).abs() < 1e-12, "{got:?}, {want:?}");
    }
    assert_eq!(got.kept_in_bf16().len(), want.kept_in_bf16().len());
    let as_int8 = load(packed.path(), WeightDtype::INT8.into()).err().expect("refused");
    assert!(matches!(&as_int8, ModelError::BadOption(what) if what.contains("2 tensors")), "{as_int8}");
    let as_floats = load(packed.path(), WeightDtype::Bf16.into()).err().expect("refused");
    assert!(matches!(&as_floats, ModelError::BadOption(what) if what.contains("a model")), "{as_floats}");
    let folder = &*open(packed.path()).expect("folder");
    let again = quantize(
        &kernels(),
        folder,
        &read_family(folder).expect("family"),
        AUTO,
        &plain.path().join("again"),
        "",
        "",
    );
    assert!(again.expect_err("refused").to_string().contains("quantised already"));
}

#[test]
fn arrays_lie_where_kernels_can_load_them_and_nothing_is_in_between() {
    let (_plain, packed) = folders(false);
    let file = std::fs::read(packed.path().join("model.safetensors")).expect("read");
    let mut entries = read_entries(&file).expect("entries");
    entries.sort_by_key(|(_, entry)| entry.range.start);
    for (name, entry) in &entries {
        let step = match name.rsplit_once('.').expect("name").1 {
            "codes" | "panels" => 64,
            "scales" => 32,
            _ => 4,
        };
        assert!(entry.range.start.is_multiple_of(step), "{name} begins at {}", entry.range.start);
    }
    assert!(entries.windows(2).all(|pair| pair[0].1.range.end == pair[1].1.range.start));
    assert_eq!(entries.last().expect("entries").1.range.end, file.len());
}

/// A quantised file taken apart: header and data.
fn parts(file: &[u8]) -> (Value, Vec<u8>) {
    let size = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    (serde_json::from_slice(&file[8..8 + size]).expect("JSON"), file[8 + size..].to_vec())
}

/// The message with which a folder is refused as corrupt.
fn corrupt(folder: &Path, why: &str) -> String {
    match load(folder, AUTO) {
        Err(error @ ModelError::Corrupt { .. }) => error.to_string(),
        Err(error) => panic!("{why}: {error:?}"),
        Ok(_) => panic!("{why}: it loads"),
    }
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    let (_plain, packed) = folders(true);
    let path = packed.path().join("model.safetensors");
    let sound = std::fs::read(&path).expect("read");
    let (header, data) = parts(&sound);
    let key = "model.layers.0.mlp.{gate_proj,up_proj}.weight";
    let codes = format!("{key}.codes");
    let refuse = |why: &str, header: &Value, data: &[u8]| {
        std::fs::write(&path, safetensors(header, data)).expect("write");
        let message = corrupt(packed.path(), why);
        assert!(message.contains("model.safetensors"), "{why}: {message}");
        message
    };
    let edited = |edit: &dyn Fn(&mut Map<String, Value>)| {
        let mut header = header.clone();
        edit(header.as_object_mut().expect("object"));
        header
    };
    // The file itself, written anew, is sound.
    std::fs::write(&path, safetensors(&header, &data)).expect("write");
    load(packed.path(), AUTO).expect("sound");
    let text = format!("{:<1$}", header.to_string(), safetensors(&header, &[]).len() - 8 + 4);
    let shifted = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat();
    std::fs::write(&path, &shifted).expect("write");
    assert!(corrupt(packed.path(), "shifted").contains("multiple of 64 bytes"));
    let renamed = edited(&|h| {
        let entry = h.remove(&codes).expect("codes");
        h.insert("other".into(), entry);
    });
    assert!(refuse("missing", &renamed, &data).contains(&format!("tensor {codes} is missing")));
    let reshaped = edited(&|h| {
        let shape = h[&codes]["shape"].as_array_mut().expect("shape");
        shape.swap(0, 4);
    });
    assert!(refuse("shape", &reshaped, &data).contains(&codes));
    let retyped = edited(&|h| h[&codes]["dtype"] = "I8".into());
    assert!(refuse("type", &retyped, &data).contains("I8"));
    let metadata = |key: &str, value: &str| edited(&|h| h["__metadata__"][key] = value.into());
    let matrices = header["__metadata__"]["matrices"].as_str().expect("matrices");
    let resized = metadata("matrices", &matrices.replace("137", "136"));
    assert!(refuse("sizes", &resized, &data).contains("config.json asks for"));
    let floats = metadata("matrices", &matrices.replacen("int8", "float32", 1));
    assert!(refuse("kind", &floats, &data).contains("float32"));
    assert!(refuse("matrices", &metadata("matrices", "{}"), &data).contains("is missing"));
    assert!(refuse("matrices", &metadata("matrices", "["), &data).contains("matrices"));
    assert!(refuse("group", &metadata("group_size", "64"), &data).contains("group_size"));
    assert!(refuse("dtype", &metadata("stored_dtype", "int4"), &data).contains("int4"));
    assert!(refuse("format", &metadata("format", "pt"), &data).contains("config.json says"));
    refuse("cut", &header, &data[..data.len() - 4]);
    refuse("longer", &header, &[&data[..], &[0; 64]].concat());
    for (key, value) in [("version", "3"), ("layout", "rows")] {
        std::fs::write(&path, safetensors(&metadata(key, value), &data)).expect("write");
        let error = load(packed.path(), AUTO).err().expect("refused");
        assert!(matches!(error, ModelError::Unsupported(_)), "{error:?}");
        assert!(
            error.to_string().contains(value) && error.to_string().contains("octavo quantize"),
            "{error}"
        );
    }
    let mut more = sound.clone();
    let place = read_entries(&sound).expect("entries").into_iter().find(|(name, _)| *name == codes);
    more[place.expect("codes").1.range.start + 17] = 0;
    std::fs::write(&path, &more).expect("write");
    assert!(
        corrupt(packed.path(), "no code").contains(&format!("tensor {codes} has 1 bytes that are no codes"))
    );
    for cut in [0, 7, 8, 100, sound.len() / 2, sound.len() - 1] {
        std::fs::write(&path, &sound[..cut]).expect("write");
        corrupt(packed.path(), "cut");
    }
}

#[test]
fn a_config_that_contradicts_its_file_is_refused() {
    let (plain, packed) = folders(true);
    config(plain.path(), &|c| c["quantization_config"] = quantization_config(QuantScheme::INT8));
    assert!(corrupt(plain.path(), "an ordinary file").contains("octavo quantize"));
    config(packed.path(), &|c| c["num_hidden_layers"] = 1.into());
    assert!(corrupt(packed.path(), "fewer layers").contains("model.layers.1."));
    config(packed.path(), &|c| c["num_hidden_layers"] = 3.into());
    assert!(corrupt(packed.path(), "more layers").contains("model.layers.2."));
    config(packed.path(), &|c| c["quantization_config"] = Value::Null);
    assert!(corrupt(packed.path(), "no config").contains("quantization_config"));
    config(packed.path(), &|c| c["quantization_config"] = json!({"quant_method": "octavo", "version": 9}));
    let error = read_family(&*open(packed.path()).expect("folder")).err().expect("refused").to_string();
    assert!(error.contains("version 9") && error.contains("octavo quantize"), "{error}");
    config(packed.path(), &|c| {
        c["num_hidden_layers"] = 2.into();
        c["quantization_config"] = quantization_config(QuantScheme::INT8_UNROTATED);
    });
    assert!(corrupt(packed.path(), "another rotation").contains("config.json says"));
    for (key, value, words) in [("bits", 4, "4 bits"), ("group_size", 64, "groups of 64")] {
        config(packed.path(), &|c| {
            c["quantization_config"] = quantization_config(QuantScheme::INT8);
            c["quantization_config"][key] = value.into();
        });
        let error = read_family(&*open(packed.path()).expect("folder")).err().expect("refused");
        assert!(matches!(&error, ModelError::Unsupported(what) if what.contains(words)), "{error}");
    }
}

/// No header makes a load do more than fail.
#[test]
fn random_headers_are_refused_or_load() {
    let (_plain, packed) = folders(true);
    let path = packed.path().join("model.safetensors");
    let sound = std::fs::read(&path).expect("read");
    let size = u64::from_le_bytes(sound[..8].try_into().expect("eight bytes")) as usize;
    let used = sound[8..8 + size].iter().rposition(|b| *b == b'}').expect("JSON") + 1;
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut loaded, mut refused) = (0, 0);
    for _ in 0..600 {
        let mut file = sound.clone();
        for _ in 0..1 + random(3) {
            let at = 8 + random(used);
            file[at] = b"0123456789[]{},:\"ax\\"[random(20)];
        }
        std::fs::write(&path, &file).expect("write");
        match load(packed.path(), AUTO) {
            Ok(model) => {
                logits(&model);
                loaded += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 300 && loaded > 0, "{loaded} load, {refused} are refused");
}
