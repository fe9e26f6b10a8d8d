use rediscope::{Replies, ReplyError, Resolve};

struct Mine;

impl Resolve for Mine {
    type Output = ();

    fn resolve(self, _: &Replies) -> Result<(), ReplyError> {
        Ok(())
    }
}

fn main() {}
