//! Encoded commands as their arguments.

/// Reads encoded commands one by one, each as its arguments.
///
/// Ends with one `Err` if the bytes are not a sequence of RESP arrays of bulk strings.
#[derive(Debug)]
pub(crate) struct CommandReader<'a> {
    rest: &'a [u8],
}

/// The bytes are not an encoded command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> CommandReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that are not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn length(&mut self, mark: u8) -> Option<usize> {
        let (mut length, mut rest) = (None, self.rest.strip_prefix(&[mark])?);
        while let [digit @ b'0'..=b'9', after @ ..] = rest {
            let digit = usize::from(digit - b'0');
            length = Some(length.unwrap_or(0usize).checked_mul(10)?.checked_add(digit)?);
            rest = after;
        }
        self.rest = rest.strip_prefix(b"\r\n")?;
        length
    }

    fn command(&mut self) -> Option<Vec<&'a [u8]>> {
        let count = self.length(b'*')?;
        let mut args = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            let length = self.length(b'$')?;
            args.push(self.rest.get(..length)?);
            self.rest = self.rest.get(length..)?.strip_prefix(b"\r\n")?;
        }
        Some(args)
    }
}

impl<'a> Iterator for CommandReader<'a> {
    type Item = Result<Vec<&'a [u8]>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let command = self.command();
        if command.is_none() {
            self.rest = &[];
        }
        Some(command.filter(|args| !args.is_empty()).ok_or(Malformed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_one_by_one() {
        let bytes = b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n";
        let commands: Vec<_> = CommandReader::new(bytes).map(Result::unwrap).collect();
        assert_eq!(commands, [vec![&b"PING"[..]], vec![&b"GET"[..], &b"a\r\nb"[..]]]);
        for bad in [
            "PING\r\n",
            "*1\r\n$4\r\nPIN",
            "*0\r\n",
            "*\r\n",
            "*1\r\n$-1\r\n",
            "*x\r\n",
            "*1\n$4\r\nPING\r\n",
            "*1\r\n$99999999999999999999\r\nPING\r\n",
        ] {
            assert_eq!(CommandReader::new(bad.as_bytes()).next(), Some(Err(Malformed)), "{bad:?}");
        }
    }
}
