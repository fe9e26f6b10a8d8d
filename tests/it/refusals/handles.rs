//! A handle of another transaction returns no value, and changes no transaction.
//!
//! Guarantee: reply-errors

use rediscope::Error;
use rediscope::error::{Applied, ReplyError};
use rediscope::prelude::*;

use super::fixture::Quiet;

#[test]
fn a_handle_of_another_transaction_is_recognized_wherever_it_came_from() {
    let mut quiet = Quiet::start();
    let accounts = quiet.sessions.transactional();
    let mut discarded = accounts.begin().unwrap();
    let of_discarded = discarded.incr("never", 1);
    discarded.discard().unwrap();
    quiet.nothing_was_sent();
    let mut of_block = None;
    accounts
        .run(|tx| {
            of_block = Some(tx.incr("n", 1));
            Ok(())
        })
        .unwrap();
    let mut tx = accounts.begin().unwrap();
    let own = tx.incr("n", 1);
    let replies = tx.commit().unwrap();
    for foreign in [of_discarded, of_block.unwrap()] {
        assert_eq!(replies.get(foreign).unwrap_err().as_reply(), Some(&ReplyError::Foreign));
        assert_eq!(
            replies.get(foreign.cast::<String>()).unwrap_err().as_reply(),
            Some(&ReplyError::Foreign)
        );
        assert_eq!(
            replies.get(vec![own, foreign]).unwrap_err().as_reply(),
            Some(&ReplyError::Foreign)
        );
        let returned = accounts.run(|tx| {
            tx.incr("n", 1);
            Ok([foreign])
        });
        match returned.unwrap_err() {
            error @ Error::Reply(ReplyError::Foreign) => {
                assert_eq!((error.applied(), error.is_retryable()), (Applied::Yes, false));
            }
            error => panic!("{error:?}"),
        }
    }
    assert_eq!(replies.get(own).unwrap(), 2);
    assert_eq!(quiet.server.ask::<i64>(&["GET", "n"]), 4, "each was applied once");
    assert_eq!(quiet.server.ask::<i64>(&["EXISTS", "never"]), 0);
    quiet.nothing_was_lost();
}
