//! Server-sent events: the lines of a streamed response.

/// The largest event that is read, in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Cuts a stream of bytes into the data of its events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The beginning of a line.
    line: Vec<u8>,
    /// The data lines of an event that has not ended.
    data: String,
}

impl Events {
    /// Takes the next bytes and returns the data of the events that end in them. Fails on an event that is too long.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, String> {
        let mut events = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(format!("an event of more than {EVENT_BYTES_MAX} bytes"));
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                events.extend(self.take_line(&line));
            }
        }
        Ok(events)
    }

    /// Returns the data of an event that the end of the stream ends.
    pub(super) fn finish(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let ended = self.take_line(&line);
        ended.or_else(|| self.take_line(b""))
    }

    /// Takes a line and returns the event's data if the line is empty, which ends an event.
    fn take_line(&mut self, line: &[u8]) -> Option<String> {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        // Other fields, and comments that keep the connection open, say nothing to us.
        if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a stream in pieces of every size.
    #[track_caller]
    fn check(stream: &str, expected: &[&str]) {
        for size in 1..=stream.len() {
            let mut events = Events::default();
            let mut read = Vec::new();
            for piece in stream.as_bytes().chunks(size) {
                read.extend(events.push(piece).unwrap());
            }
            read.extend(events.finish());
            assert_eq!(read, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn events() {
        check("data: {\"a\": \"ö\"}\n\ndata:b\n\n", &["{\"a\": \"ö\"}", "b"]);
        check(": ping\r\n\r\nevent: x\r\ndata: a\r\ndata: b\r\n\r\ndata: [DONE]", &["a\nb", "[DONE]"]);
        check("\n\n: only comments\n\n", &[]);
    }

    #[test]
    fn endless_events_are_refused() {
        let mut events = Events::default();
        assert!(events.push(&vec![b'x'; EVENT_BYTES_MAX]).is_ok());
        assert!(events.push(b"x").unwrap_err().contains("more than"));
    }
}
