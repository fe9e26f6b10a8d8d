//! The operands of INCRBY, DECRBY and HINCRBY.
//!
//! The server refuses a float, but in a block it does so after the earlier commands were applied.
//! So a float does not compile, and a float that is known only by its bytes is refused while it is
//! queued.

use redis::ToSingleRedisArg;

/// An operand that can be added to an integer: any single argument but a float.
///
/// The trait is implemented once for every type, and a second time for floats. So `Kind` can be
/// inferred for every type but floats, and for these the compiler's error names both
/// implementations.
pub trait IntegerToAdd<Kind>: ToSingleRedisArg {}

/// Any argument.
#[derive(Debug)]
pub enum NoFloat {}

/// A float, which `incr_float` and `hincr_float` add.
#[derive(Debug)]
pub enum UseIncrFloatOrHincrFloat {}

impl<T: ToSingleRedisArg> IntegerToAdd<NoFloat> for T {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for f32 {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for f64 {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for &f32 {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for &f64 {}
