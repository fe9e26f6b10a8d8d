use rediscope::IntoKeys;

struct Mine;

impl IntoKeys for Mine {}

fn main() {}
