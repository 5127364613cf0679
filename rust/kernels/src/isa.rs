//! Instruction-set levels: which exist here, and how one is chosen.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// The environment variable that [`Isa::from_env`] reads.
const VARIABLE: &str = "OCTAVO_ISA";

/// An instruction-set level. All levels give bit-identical results; they differ in speed only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, on any machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// As `Avx512`, with tiles: AMX for int8 and bfloat16.
    Amx,
}

/// Why an instruction-set level cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of the levels.
    #[error("unknown instruction set {name:?}: use \"portable\", \"avx2\", \"avx512\" or \"amx\"")]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// This machine lacks the level.
    #[error(
        "instruction set \"{isa}\" is not available on this machine (best here: \"{best}\"); leave it unset"
    )]
    Unavailable {
        /// The level asked for.
        isa: Isa,
        /// The best level of this machine.
        best: Isa,
    },
}

impl Isa {
    /// The best level of this machine; found once.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(detect_now)
    }

    /// Every level that this machine can run, lowest first.
    pub fn available() -> Vec<Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether this machine can run the level. Levels are nested: a machine runs all below its best.
    pub fn is_available(self) -> bool {
        self <= Isa::detect()
    }

    /// The level named by the environment variable `OCTAVO_ISA`, or the best level when it is unset or empty.
    ///
    /// # Errors
    /// [`IsaError`] when the value is no level, or a level that this machine lacks.
    pub fn from_env() -> Result<Isa, IsaError> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse::<Isa>()?.check(),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(Isa::detect()),
            Err(std::env::VarError::NotUnicode(name)) => {
                Err(IsaError::Unknown { name: name.to_string_lossy().into_owned() })
            }
        }
    }

    /// The level itself where this machine can run it.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`] where it cannot.
    pub fn check(self) -> Result<Isa, IsaError> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(IsaError::Unavailable { isa: self, best: Isa::detect() })
        }
    }

    /// The level's name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Isa, IsaError> {
        match name.to_ascii_lowercase().as_str() {
            "portable" => Ok(Isa::Portable),
            "avx2" => Ok(Isa::Avx2),
            "avx512" => Ok(Isa::Avx512),
            "amx" => Ok(Isa::Amx),
            _ => Err(IsaError::Unknown { name: name.to_owned() }),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect_now() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512) {
        (true, true) if crate::amx::available() => Isa::Amx,
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_now() -> Isa {
    Isa::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx] {
            assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
        }
        assert_eq!("AVX2".parse::<Isa>(), Ok(Isa::Avx2));
        assert_eq!("sse9".parse::<Isa>(), Err(IsaError::Unknown { name: "sse9".into() }));
    }

    #[test]
    fn portable_is_always_there_and_lists_are_sorted() {
        let all = Isa::available();
        assert_eq!(all[0], Isa::Portable);
        assert!(all.is_sorted());
        assert_eq!(all.last().copied(), Some(Isa::detect()));
    }
}
