//! What INCRBY, DECRBY and HINCRBY add.
//!
//! The server refuses a float, and in a block it does so after the commands before were applied. So
//! a float does not compile, and one that is known only by its bytes is refused while it is queued.

use redis::ToSingleRedisArg;

/// What can be added to an integer: any single argument but a float.
///
/// It is implemented once for every type, and a second time for floats. So `Kind` can be inferred
/// for every type but these, and the compiler names both implementations.
pub trait IntegerToAdd<Kind>: ToSingleRedisArg {}

/// Any argument.
#[derive(Debug)]
pub enum NoFloat {}

/// A float: `incr_float` and `hincr_float` add these.
#[derive(Debug)]
pub enum UseIncrFloatOrHincrFloat {}

impl<T: ToSingleRedisArg> IntegerToAdd<NoFloat> for T {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for f32 {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for f64 {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for &f32 {}
impl IntegerToAdd<UseIncrFloatOrHincrFloat> for &f64 {}
