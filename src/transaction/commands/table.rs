//! The macro that generates every command of the table. The commands themselves are in their
//! families.

/// Generates a family of commands: a trait that queues each of them. For reads it also generates
/// the method of the same name on [`Watching`](crate::transaction::watch_scope::Watching), which
/// sends the command at once, and on the two types of tasks, which return a future.
///
/// An entry describes its command completely:
///
/// ```text
/// /// One line of documentation.
/// fn method<G: Bound, …>(argument: Type, …) -> Reply
///     => "WORD" "SUBWORD" (value, …), page "on-redis.io", replies "what the reply means";
/// ```
///
/// The words are the server's name of the command, and the values follow them in the encoded
/// command, in that order. `[if condition => "OTHER"]` after the words replaces them by `OTHER`.
/// `G: Bound<H>` is a bound that uses a second generic. `reads` are the commands that the server
/// documents as read-only.
macro_rules! command_table {
    (
        $(#[$about:meta])*
        $family:ident
        reads { $($reads:tt)* }
        writes { $($writes:tt)* }
    ) => {
        $(#[$about])*
        pub trait $family: $crate::transaction::commands::sealed::Queue + Sized {
            command_table! { @queue $($reads)* }
            command_table! { @queue $($writes)* }
        }

        impl<Q: $crate::transaction::commands::sealed::Queue> $family for Q {}

        impl $crate::transaction::watch_scope::Watching {
            command_table! { @read $($reads)* }
        }

        #[cfg(feature = "tokio")]
        impl $crate::transaction::tasks::watching::Watching {
            command_table! { @read_by_task $($reads)* }
        }

        #[cfg(feature = "tokio")]
        impl $crate::transaction::tasks::attempt::Attempt<'_> {
            command_table! { @read_by_task $($reads)* }
        }

        #[cfg(test)]
        command_table! { @names READS $($reads)* }
        #[cfg(test)]
        command_table! { @names WRITES $($writes)* }
    };

    (@queue $(
        $(#[$doc:meta])*
        fn $name:ident $(<$($generic:ident: $bound:ident $(<$of:ident>)?),+>)? (
            $($arg:ident: $type:ty),*
        ) -> $reply:ty
            => $word:literal $($more:literal)* $([if $condition:expr => $other:literal])?
                ($($value:expr),*), page $page:literal, replies $says:literal;
    )*) => {$(
        $(#[$doc])*
        #[doc = concat!(
            "\n\n[`", $word, $(" ", $more,)* "`](https://redis.io/docs/latest/commands/", $page,
            "/) returns ", $says, ", decoded as `", stringify!($reply), "`.",
        )]
        fn $name $(<$($generic: $bound $(<$of>)?),+>)? (
            &mut self $(, $arg: $type)*
        ) -> $crate::reply::queued::Queued<$reply> {
            self.put(
                $(if $condition { $crate::protocol::resp::encode::words!($other) } else)? {
                    $crate::protocol::resp::encode::words!($word $(, $more)*)
                },
                |args| { let _ = args $(.arg($value))*; },
            )
        }
    )*};

    (@read $(
        $(#[$doc:meta])*
        fn $name:ident $(<$($generic:ident: $bound:ident $(<$of:ident>)?),+>)? (
            $($arg:ident: $type:ty),*
        ) -> $reply:ty
            => $word:literal $($more:literal)*
                ($($value:expr),*), page $page:literal, replies $says:literal;
    )*) => {$(
        $(#[$doc])*
        #[doc = concat!(
            "\n\n[`", $word, $(" ", $more,)* "`](https://redis.io/docs/latest/commands/", $page,
            "/) returns ", $says, ", decoded as `", stringify!($reply), "`. Sent at once, on the ",
            "pinned connection.\n\n# Errors\n\nThe errors of [`query`](Self::query).",
        )]
        pub fn $name $(<$($generic: $bound $(<$of>)?),+>)? (
            &mut self $(, $arg: $type)*
        ) -> Result<$reply, $crate::error::any::Error> {
            self.read(
                $word,
                $crate::protocol::resp::encode::words!($word $(, $more)*),
                |args| { let _ = args $(.arg($value))*; },
            )
        }
    )*};

    (@read_by_task $(
        $(#[$doc:meta])*
        fn $name:ident $(<$($generic:ident: $bound:ident $(<$of:ident>)?),+>)? (
            $($arg:ident: $type:ty),*
        ) -> $reply:ty
            => $word:literal $($more:literal)*
                ($($value:expr),*), page $page:literal, replies $says:literal;
    )*) => {$(
        $(#[$doc])*
        #[doc = concat!(
            "\n\n[`", $word, $(" ", $more,)* "`](https://redis.io/docs/latest/commands/", $page,
            "/) returns ", $says, ", decoded as `", stringify!($reply), "`. Sent at once, on the ",
            "pinned connection. If the future is dropped, the reply is thrown away.\n\n# Errors\n\n",
            "The errors of [`query`](Self::query).",
        )]
        pub fn $name $(<$($generic: $bound $(<$of>)?),+>)? (
            &mut self $(, $arg: $type)*
        ) -> impl Future<Output = Result<$reply, $crate::error::any::Error>> + Send {
            self.fetch($crate::transaction::tasks::watching::EncodedRead::new(
                $word,
                $crate::protocol::resp::encode::words!($word $(, $more)*),
                |args| { let _ = args $(.arg($value))*; },
            ))
        }
    )*};

    (@names $list:ident $(
        $(#[$doc:meta])*
        fn $name:ident $(<$($generic:ident: $bound:ident $(<$of:ident>)?),+>)? (
            $($arg:ident: $type:ty),*
        ) -> $reply:ty
            => $word:literal $($more:literal)* $([if $condition:expr => $other:literal])?
                ($($value:expr),*), page $page:literal, replies $says:literal;
    )*) => {
        pub(crate) const $list: &[&str] = &[$(stringify!($name)),*];
    };
}

pub(crate) use command_table;
