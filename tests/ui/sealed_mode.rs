use rediscope::Mode;

struct Sometimes;

impl Mode for Sometimes {}

fn main() {}
