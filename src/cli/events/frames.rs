//! Reads server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), as ostler sends them.

/// Bytes of one frame at most: a longer one does not come from ostler.
const MAX_FRAME: usize = 1 << 20;

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) id: Option<String>,
    /// `None`: a message.
    pub(super) name: Option<String>,
    pub(super) data: String,
}

/// The bytes of a stream that are not a whole event yet.
#[derive(Debug, Default)]
pub(super) struct Frames {
    held: Vec<u8>,
}

impl Frames {
    /// The events that end in these bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.held.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(end) = self.held.windows(2).position(|pair| pair == b"\n\n") {
            let text: Vec<u8> = self.held.drain(..end + 2).collect();
            frames.extend(frame(&String::from_utf8_lossy(&text)));
        }
        if self.held.len() > MAX_FRAME {
            self.held.clear();
        }
        frames
    }
}

/// `None`: a comment, or what only sets the pause before the next connection.
fn frame(text: &str) -> Option<Frame> {
    let mut frame = Frame::default();
    let mut has_data = false;
    for (field, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => frame.id = Some(value.to_owned()),
            "event" => frame.name = Some(value.to_owned()),
            "data" => {
                has_data = true;
                frame.data.push_str(value);
            }
            _ => {}
        }
    }
    has_data.then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_however_their_bytes_arrive() {
        let stream = "retry: 2000\n\n: ping\n\nid: a-1\ndata: {\"ä\":1}\n\nevent: gap\ndata: {}\n\nid: a-2\nda";
        let expected = [
            Frame { id: Some("a-1".to_owned()), name: None, data: "{\"ä\":1}".to_owned() },
            Frame { id: None, name: Some("gap".to_owned()), data: "{}".to_owned() },
        ];
        for size in [1, 2, 3, 7, 1000] {
            let mut frames = Frames::default();
            let read: Vec<Frame> = stream.as_bytes().chunks(size).flat_map(|bytes| frames.take(bytes)).collect();
            assert_eq!(read, expected, "{size} bytes at a time");
        }
    }

    #[test]
    fn what_never_ends_is_not_held() {
        let mut frames = Frames::default();
        assert_eq!(frames.take(&vec![b'x'; MAX_FRAME + 1]), []);
        assert_eq!(frames.take(b"data: 1\n\n").len(), 1);
    }
}
