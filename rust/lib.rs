//! ravine: fused optimizer steps and batch normalisation for arrays.
//!
//! One formula, every backend: a rule ([`rules`]) is written once over [`real::Real`]; [`step`] runs it over arrays,
//! [`trace`] prints it. [`norm`] is batch and layer normalisation. [`reduce`] defines the order of every sum, so that the bits depend on nothing else.

pub mod after;
mod capi;
mod codec;
pub mod element;
pub mod error;
pub mod norm;
pub mod onebit;
mod overlap;
pub mod pool;
pub mod random;
pub mod real;
pub mod reduce;
pub mod rows;
pub mod rules;
pub mod simd;
pub mod step;
pub mod trace;

#[cfg(feature = "python")]
mod python;
