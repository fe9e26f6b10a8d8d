use rediscope::QueueCommands;

struct Mine;

impl QueueCommands for Mine {}

fn main() {}
