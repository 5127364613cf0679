//! Faults of the engine, each with the name of the Python class that carries it.

use octavo_model::ModelError;
use octavo_scheduler::Rejection;

/// Anything that a caller of the engine can be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model folder is not there.
    #[error("{0}")]
    ModelNotFound(String),
    /// The model uses what octavo does not support.
    #[error("{0}")]
    UnsupportedModel(String),
    /// A file of the model is damaged or contradicts another.
    #[error("{0}")]
    CorruptModel(String),
    /// A parameter or prompt that cannot be right.
    #[error("{0}")]
    InvalidRequest(String),
    /// The prompt is longer than the context.
    #[error("{0}")]
    ContextLength(String),
    /// As many requests wait as the queue takes.
    #[error("{0}")]
    QueueFull(String),
    /// The engine was closed, or could not go on.
    #[error("{0}")]
    EngineDead(String),
    /// No adapter has this name, or it has another generation.
    #[error("{0}")]
    AdapterNotFound(String),
    /// The name of an adapter has another generation than the caller expected.
    #[error("{0}")]
    AdapterConflict(String),
    /// No pack has this name.
    #[error("{0}")]
    PackNotFound(String),
    /// A pack was made with something else than this engine has.
    #[error("{0}")]
    PackMismatch(String),
    /// The memory of the device does not hold the model.
    #[error("{0}")]
    DeviceMemory(String),
    /// The request's own time limit passed.
    #[error("{0}")]
    Timeout(String),
    /// A step failed while this request was in it.
    #[error("{0}")]
    Execution(String),
}

impl EngineError {
    /// The class in `octavo.errors`.
    pub fn class_name(&self) -> &'static str {
        match self {
            Self::ModelNotFound(_) => "ModelNotFoundError",
            Self::UnsupportedModel(_) => "UnsupportedModelError",
            Self::CorruptModel(_) => "CorruptModelError",
            Self::InvalidRequest(_) => "InvalidRequestError",
            Self::ContextLength(_) => "ContextLengthError",
            Self::QueueFull(_) => "QueueFullError",
            Self::EngineDead(_) => "EngineDeadError",
            Self::AdapterNotFound(_) => "AdapterNotFoundError",
            Self::AdapterConflict(_) => "AdapterConflictError",
            Self::PackNotFound(_) => "PackNotFoundError",
            Self::PackMismatch(_) => "PackMismatchError",
            Self::DeviceMemory(_) => "DeviceMemoryError",
            Self::Timeout(_) => "RequestTimeoutError",
            Self::Execution(_) => "ExecutionError",
        }
    }

    /// The error of every call after `close`.
    pub fn closed() -> Self {
        Self::EngineDead("the engine is closed. Make a new LLM".into())
    }
}

impl From<Rejection> for EngineError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Draining => Self::closed(),
            Rejection::TooLong { .. } | Rejection::PromptTooLong { .. } => {
                Self::ContextLength(rejection.to_string())
            }
            Rejection::QueueFull { .. } => Self::QueueFull(rejection.to_string()),
            other => Self::InvalidRequest(other.to_string()),
        }
    }
}

impl From<ModelError> for EngineError {
    fn from(e: ModelError) -> Self {
        let text = e.to_string();
        match e {
            ModelError::NotFound { .. }
            | ModelError::NoTokenizer { .. }
            | ModelError::NoAdapter { .. }
            | ModelError::Io { .. } => Self::ModelNotFound(text),
            ModelError::Unsupported(_) | ModelError::UnsupportedAdapter { .. } => {
                Self::UnsupportedModel(text)
            }
            ModelError::BadConfig { .. }
            | ModelError::Corrupt { .. }
            | ModelError::CorruptAdapter { .. }
            | ModelError::ForeignAdapter { .. }
            | ModelError::Text { .. } => Self::CorruptModel(text),
            ModelError::BadOption(_) | ModelError::Write { .. } => Self::InvalidRequest(text),
        }
    }
}

/// The text of a caught panic.
pub(crate) fn panic_text(payload: Box<dyn std::any::Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into())
}
