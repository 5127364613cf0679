//! Which family config.json means: `model_type` as in transformers, checked against the names in `architectures`.

use super::table::{FAMILIES, FamilyFn, known};
use crate::ModelError;
use crate::config::Config;

/// The family of a config.
pub struct Chosen {
    /// Its `model_type`.
    pub model_type: &'static str,
    /// Reads the rest of the config.
    pub read: FamilyFn,
    /// `architectures` names the model without an output head.
    pub base: bool,
    /// Where the two keys do not agree.
    pub warnings: Vec<String>,
}

/// One entry of `architectures`, compared with the families.
enum Name<'a> {
    /// A family's, in any case.
    Known(usize),
    /// A family's model without a head.
    Base(usize),
    /// A model for another task than generating.
    OtherTask(&'a str),
    Unknown(&'a str),
}

impl<'a> Name<'a> {
    fn of(name: &'a str) -> Self {
        let lower = name.to_ascii_lowercase();
        let found = FAMILIES.iter().position(|family| family.0.eq_ignore_ascii_case(name));
        let base = || {
            let stem = lower.strip_suffix("model")?;
            let stem = stem.strip_suffix("text").unwrap_or(stem);
            let of = |family: &str| family.to_ascii_lowercase().strip_suffix("forcausallm") == Some(stem);
            FAMILIES.iter().position(|family| of(family.0))
        };
        if let Some(found) = found {
            Self::Known(found)
        } else if let Some(found) = base() {
            Self::Base(found)
        } else if name.contains("For") && !lower.ends_with("forcausallm") {
            Self::OtherTask(name)
        } else {
            Self::Unknown(name)
        }
    }

    fn family(&self) -> Option<usize> {
        match self {
            Self::Known(family) | Self::Base(family) => Some(*family),
            Self::OtherTask(_) | Self::Unknown(_) => None,
        }
    }
}

/// The family that `config` means.
///
/// # Errors
/// `Unsupported` names the architecture, or the `model_type` where there is none.
pub fn choose(config: &Config<'_>) -> Result<Chosen, ModelError> {
    let listed = config.texts("architectures")?.unwrap_or_default();
    let names = listed.iter().map(|name| Name::of(name)).collect::<Vec<_>>();
    let model_type = config.text("model_type")?;
    let by_type = FAMILIES.iter().position(|(_, kind, _)| model_type == Some(kind));
    // The name that fits `model_type` if there is one, else the first that is known.
    let fits = |name: &&Name<'_>| by_type.is_some() && name.family() == by_type;
    let named = names.iter().find(fits).or_else(|| names.iter().find(|name| name.family().is_some()));
    let other_task = names.iter().any(|name| matches!(name, Name::OtherTask(_)));
    let asked = listed.first().copied().or(model_type).unwrap_or("none named in config.json");
    let unsupported =
        || ModelError::Unsupported(format!("architecture {asked}. Known are: {}", known().join(", ")));
    let family = match (by_type, named.and_then(Name::family)) {
        (Some(family), Some(_)) => family,
        (Some(family), None) if !other_task => family,
        (None, Some(family)) => family,
        _ => return Err(unsupported()),
    };
    let (architecture, kind, read) = FAMILIES[family];
    let mut warnings = Vec::new();
    match names.first() {
        Some(first) if named.and_then(Name::family) != Some(family) => {
            let shown = match first {
                Name::OtherTask(name) | Name::Unknown(name) => name,
                Name::Known(other) | Name::Base(other) => FAMILIES[*other].0,
            };
            warnings.push(format!(
                "config.json names the architecture {shown} and the model_type {kind}: it is read as {architecture}, as in \
                 transformers"
            ));
        }
        _ => {}
    }
    Ok(Chosen { model_type: kind, read, base: matches!(named, Some(Name::Base(_))), warnings })
}
