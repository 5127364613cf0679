//! How fast the kernels run here, beside what the machine allows.

mod attention;
mod cases;
mod limits;
mod readings;
mod shapes;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::{AttentionPlan, AttentionReading, read_attention};
pub use limits::{Limits, Peak, Rate};
pub use readings::{Plan, Reading, read};
