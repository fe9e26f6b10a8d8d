use rediscope::commands::QueueCommands;

struct Mine;

impl QueueCommands for Mine {}

fn main() {}
