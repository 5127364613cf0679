//! kv.safetensors of a pack: the blocks in the pool's own layout, layer by layer.
//!
//! ```text
//! bytes
//! 0..8        size of the header, u64
//! 8..8+size   header, JSON, padded with spaces; 8 + size is a multiple of 4096
//! data        "layers.0"   U8 [blocks, bytes of a block]      begins at a multiple of 4096
//!             "pad.0"      U8 [zeros up to the next multiple of 4096], if there are any
//!             "layers.1"   ...
//! ```
//!
//! The header follows from the number of blocks and the sizes alone. A reader makes the header it expects and compares
//! it with the file's: nothing of a file is believed before its digests are checked.

use std::fmt::Write;

/// Layers begin at multiples of this.
const ALIGNMENT: u64 = 4096;

/// Sizes and places in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvFile {
    /// The first bytes of the file, up to the data.
    pub header: Vec<u8>,
    /// Where each layer begins.
    pub starts: Vec<u64>,
    /// Bytes of a block in each layer.
    pub block_bytes: Vec<usize>,
    /// Bytes of the file.
    pub bytes: u64,
}

impl KvFile {
    /// The file for `blocks` blocks with these bytes in each layer. None: the sizes overflow.
    pub fn new(blocks: u32, block_bytes: &[usize]) -> Option<Self> {
        let mut json = String::from("{\"__metadata__\":{\"format\":\"octavo-pack\",\"version\":\"1\"}");
        let (mut offsets, mut at) = (Vec::with_capacity(block_bytes.len()), 0u64);
        for (i, &bytes) in block_bytes.iter().enumerate() {
            let end = at.checked_add(u64::from(blocks).checked_mul(bytes as u64)?)?;
            let padded = end.checked_next_multiple_of(ALIGNMENT)?;
            offsets.push(at);
            // Writing to a text does not fail.
            let _ = write!(
                json,
                ",\"layers.{i}\":{{\"dtype\":\"U8\",\"shape\":[{blocks},{bytes}],\"data_offsets\":[{at},{end}]}}"
            );
            if padded > end {
                let size = padded - end;
                let _ = write!(
                    json,
                    ",\"pad.{i}\":{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{end},{padded}]}}"
                );
            }
            at = padded;
        }
        json.push('}');
        let size = (json.len() as u64 + 8).next_multiple_of(ALIGNMENT) - 8;
        json.extend(std::iter::repeat_n(' ', size as usize - json.len()));
        let header = [&size.to_le_bytes()[..], json.as_bytes()].concat();
        let begin = header.len() as u64;
        Some(Self {
            starts: offsets.into_iter().map(|offset| begin + offset).collect(),
            block_bytes: block_bytes.to_vec(),
            bytes: begin.checked_add(at)?,
            header,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_begin_at_pages_and_the_header_names_them() {
        let file = KvFile::new(3, &[4096, 100]).expect("sizes");
        assert_eq!(file.header.len() as u64 % ALIGNMENT, 0);
        assert_eq!(file.starts, [file.header.len() as u64, file.header.len() as u64 + 3 * 4096]);
        assert_eq!(file.bytes, file.starts[1] + ALIGNMENT);
        let size = u64::from_le_bytes(file.header[..8].try_into().expect("8 bytes"));
        let header: serde_json::Value =
            serde_json::from_slice(&file.header[8..8 + size as usize]).expect("JSON");
        assert_eq!(header["layers.1"]["shape"], serde_json::json!([3, 100]));
        assert_eq!(header["layers.1"]["data_offsets"], serde_json::json!([12288, 12588]));
        assert_eq!(header["pad.1"]["data_offsets"], serde_json::json!([12588, 16384]));
        assert!(header.get("pad.0").is_none());
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert_eq!(KvFile::new(u32::MAX, &[usize::MAX]), None);
    }
}
