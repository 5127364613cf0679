//! The file of `octavo quantize`: its layout (`format`), writing it (`writer`) and loading it by mapping (`reader`).

pub mod format;
pub mod reader;
pub mod writer;
