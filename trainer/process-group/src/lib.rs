//! Processes that train together: libtorch's distributed engine, c10d, with a safe interface.
//!
//! A launcher (torchrun, srun, mpirun) starts the processes and tells each its rank; [`Launch`] reads this from the
//! environment. A [`ProcessGroup`] connects them and adds their tensors. Tensors in CPU memory travel through Gloo, those
//! on GPUs through NCCL.

mod launch;
mod group;
mod connect;
mod error;
mod shim;

pub use error::Error;
pub use group::ProcessGroup;
pub use launch::{Launch, LaunchError};
