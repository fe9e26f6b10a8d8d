//! The macro that generates every condition. The conditions themselves are in their families.

/// Generates a family of conditions: functions of
/// [`Condition`](crate::transaction::condition::Condition) whose names appear in errors.
///
/// ```text
/// impl Condition {
///     /// What must be true.
///     fn name<G: Bound, …>(argument: Type, …)
///         => "WORD" (key, …), page "on-redis.io", holds what-is-expected;
/// }
/// ```
///
/// The first value after the word is the key, which is watched.
macro_rules! conditions {
    (
        $(#[$about:meta])*
        impl Condition {$(
            $(#[$doc:meta])*
            fn $name:ident $(<$($generic:ident: $bound:ident),+>)? ($($arg:ident: $type:ty),*)
                => $word:literal ($($value:expr),*), page $page:literal, holds $expected:expr;
        )*}
    ) => {
        $(#[$about])*
        impl $crate::transaction::condition::Condition {$(
            $(#[$doc])*
            #[doc = concat!(
                "\n\nRead with [`", $word, "`](https://redis.io/docs/latest/commands/", $page,
                "/)."
            )]
            pub fn $name $(<$($generic: $bound),+>)? ($($arg: $type),*) -> Self {
                let expected = $expected;
                let args = |args: &mut $crate::protocol::resp::encode::Args<'_>| {
                    let _ = args $(.arg($value))*;
                };
                Self::new(stringify!($name), $word, args, expected)
            }
        )*}
    };
}

pub(crate) use conditions;
