//! Schemes of quantised weights, and which of them kernels implement.

use std::fmt;

/// Columns that share a scale, in weights and activations.
pub const GROUP: usize = 128;

/// Form of quantised weights `[rows, columns]`: one value from the option to the file and the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantScheme {
    /// Bits of a code.
    pub bits: u8,
    /// Columns that share a scale.
    pub group: usize,
    /// Whether code 0 is the value 0; otherwise a group also has a zero point.
    pub symmetric: bool,
    /// Rotation of the columns before quantisation, in weights and activations.
    pub rotation: Rotation,
}

/// Rotation of the columns of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rotation {
    /// Columns as in the checkpoint.
    #[default]
    None,
    /// Each group of 128 columns by a Hadamard matrix behind fixed signs. It spreads outliers over their group.
    Hadamard,
}

impl Rotation {
    /// The name in files: "none" or "hadamard".
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hadamard => "hadamard",
        }
    }

    /// The rotation with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Hadamard].into_iter().find(|rotation| rotation.name() == name)
    }
}

/// A scheme without kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("weights of {0} are not supported, only those of {supported}", supported = QuantScheme::INT8)]
pub struct UnsupportedScheme(pub QuantScheme);

impl QuantScheme {
    /// 8 bits, symmetric, one scale per row and group of 128 columns, rotated.
    pub const INT8: Self = Self { bits: 8, group: GROUP, symmetric: true, rotation: Rotation::Hadamard };
    /// [`Self::INT8`] without rotation: the form of codes that come from a checkpoint.
    pub const INT8_UNROTATED: Self = Self { rotation: Rotation::None, ..Self::INT8 };

    /// The scheme with the name "int8", "int4" and so on: that of [`Self::INT8`] with other bits. None: not such a name.
    pub fn from_name(name: &str) -> Option<Self> {
        let bits = name.strip_prefix("int")?.parse().ok()?;
        Some(Self { bits, ..Self::INT8 }).filter(|scheme| scheme.name() == name)
    }

    /// Name in options, files and `info()`, such as "int8".
    pub fn name(self) -> String {
        format!("int{}", self.bits)
    }

    /// The scheme, if kernels implement it.
    ///
    /// # Errors
    /// [`UnsupportedScheme`] names the scheme.
    pub fn check(self) -> Result<Self, UnsupportedScheme> {
        if [Self::INT8, Self::INT8_UNROTATED].contains(&self) {
            Ok(self)
        } else {
            Err(UnsupportedScheme(self))
        }
    }
}

impl fmt::Display for QuantScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bits, group, symmetric, rotation } = self;
        let symmetry = if *symmetric { "symmetric" } else { "asymmetric" };
        let rotated = match rotation {
            Rotation::None => "not rotated",
            Rotation::Hadamard => "rotated",
        };
        write!(f, "{bits} bits in groups of {group}, {symmetry}, {rotated}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_without_kernels_are_refused_by_name() {
        let int8 = QuantScheme::INT8;
        assert_eq!(int8.check(), Ok(int8));
        assert_eq!(QuantScheme::from_name("int8"), Some(int8));
        let int4 = QuantScheme::from_name("int4").expect("a scheme");
        for (scheme, word) in [
            (int4, "4 bits"),
            (QuantScheme { group: 64, ..int8 }, "groups of 64"),
            (QuantScheme { group: 0, ..int8 }, "groups of 0"),
            (QuantScheme { symmetric: false, ..int8 }, "asymmetric"),
        ] {
            let error = scheme.check().expect_err(word);
            assert_eq!(error, UnsupportedScheme(scheme));
            assert!(error.to_string().contains(word), "{error}");
        }
        for name in ["int", "int4x", "int08", "int+8", "int999", "float8", "none", ""] {
            assert_eq!(QuantScheme::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_read_back() {
        for bits in [2, 4, 8] {
            let scheme = QuantScheme { bits, ..QuantScheme::INT8 };
            assert_eq!(QuantScheme::from_name(&scheme.name()), Some(scheme));
        }
    }
}
