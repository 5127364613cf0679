//! Checkpoints that are damaged or contradict themselves are refused with the file and the tensor named.

use std::collections::HashMap;
use std::path::Path;

use octavo_model::{Checkpoint, ModelError};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn write(path: &Path, tensors: &[(&str, Vec<usize>)]) {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let values =
                (0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()).collect();
            (name.to_string(), shape.clone(), values)
        })
        .collect();
    let views: HashMap<String, TensorView<'_>> = data
        .iter()
        .map(|(name, shape, bytes)| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("view"))
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).expect("write");
}

fn refused(folder: &Path) -> String {
    let error = Checkpoint::open(folder).err().expect("refused");
    assert!(matches!(error, ModelError::Corrupt { .. } | ModelError::NotFound { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_sound_file_gives_its_tensors_and_refuses_other_shapes() {
    let dir = tempfile::tempdir().expect("dir");
    write(&dir.path().join("model.safetensors"), &[("a", vec![2, 3]), ("b", vec![4])]);
    let c = Checkpoint::open(dir.path()).expect("open");
    assert_eq!(c.tensor("a", &[2, 3]).expect("a").to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(c.bytes(), 40);
    assert!(c.has("b") && !c.has("c"));
    let error = c.tensor("a", &[3, 2]).err().expect("shape").to_string();
    assert!(error.contains("a has shape [2, 3]") && error.contains("[3, 2]"), "{error}");
    assert!(c.tensor("c", &[1]).err().expect("missing").to_string().contains("tensor c is missing"));
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("model.safetensors");
    assert!(refused(dir.path()).contains("no model.safetensors"));
    write(&file, &[("a", vec![64])]);
    let sound = std::fs::read(&file).expect("read");
    for cut in [0, 4, 8, 20, sound.len() - 1] {
        std::fs::write(&file, &sound[..cut]).expect("write");
        assert!(refused(dir.path()).contains("model.safetensors"), "cut at {cut}");
    }
    let mut oversize = sound.clone();
    oversize[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&file, &oversize).expect("write");
    refused(dir.path());
}

/// A file with this header over eight bytes of data.
fn with_header(path: &Path, header: &str) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    std::fs::write(path, bytes).expect("write");
}

#[test]
fn duplicate_overlapping_and_outlying_entries_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("model.safetensors");
    let entry = |name: &str, from: u32, to: u32| {
        format!(
            "\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[{from},{to}]}}",
            (to - from) / 4
        )
    };
    with_header(&file, &format!("{{{},{}}}", entry("a", 0, 4), entry("b", 4, 8)));
    assert!(Checkpoint::open(dir.path()).is_ok(), "the pattern itself is sound");
    with_header(&file, &format!("{{{},{}}}", entry("a", 0, 8), entry("a", 0, 8)));
    assert!(refused(dir.path()).contains("tensor a is named twice"));
    with_header(&file, &format!("{{{},{}}}", entry("a", 0, 8), entry("b", 4, 8)));
    refused(dir.path());
    with_header(&file, &format!("{{{}}}", entry("a", 0, 4096)));
    refused(dir.path());
}

#[test]
fn an_index_must_name_shards_that_exist_in_its_folder() {
    let dir = tempfile::tempdir().expect("dir");
    let index = |map: &str| {
        let text = format!("{{\"weight_map\": {map}}}");
        std::fs::write(dir.path().join("model.safetensors.index.json"), text).expect("write");
    };
    write(&dir.path().join("one.safetensors"), &[("a", vec![1])]);
    write(&dir.path().join("two.safetensors"), &[("b", vec![1])]);
    index("{\"a\": \"one.safetensors\", \"b\": \"two.safetensors\"}");
    assert!(Checkpoint::open(dir.path()).expect("open").has("b"));
    index("{\"a\": \"one.safetensors\", \"b\": \"three.safetensors\"}");
    assert!(refused(dir.path()).contains("three.safetensors"));
    index("{\"a\": \"two.safetensors\"}");
    let wrong = Checkpoint::open(dir.path()).expect("open");
    assert!(!wrong.has("a") && wrong.has("b"), "what a shard holds counts");
    assert!(wrong.warnings()[0].contains("names a, and no shard holds it"), "{:?}", wrong.warnings());
    index("{\"a\": \"../one.safetensors\"}");
    assert!(refused(dir.path()).contains("file name is expected"));
    index("[]");
    assert!(refused(dir.path()).contains("weight_map"));
}
