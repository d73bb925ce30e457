//! The terminal that indicatif draws on: a writer that gets each frame in one piece, and a size
//! that may change at any time.
//!
//! Nothing is set that would have to be set back: the cursor stays visible, lines wrap as before,
//! no other screen is entered. However the program ends, the terminal is usable.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::TermLike;
use rustix::termios::tcgetwinsize;

/// Columns and rows, asked for before each frame.
pub type Size = Arc<dyn Fn() -> (u16, u16) + Send + Sync>;

/// The size of the terminal `fd`; 80 by 24 where it does not say.
pub fn size_of(fd: impl AsFd + Send + Sync + 'static) -> Size {
    Arc::new(move || match tcgetwinsize(&fd) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    })
}

#[derive(Clone)]
pub struct Screen {
    size: Size,
    frame: Arc<Mutex<Frame>>,
}

struct Frame {
    writer: Box<dyn Write + Send>,
    is_broken: bool,
    bytes: Vec<u8>,
    /// The cursor stands at the end of a line that is complete.
    owes_line_feed: bool,
}

impl Screen {
    pub fn new(writer: Box<dyn Write + Send>, size: Size) -> Self {
        let frame = Frame { writer, is_broken: false, bytes: Vec::new(), owes_line_feed: false };
        Self { size, frame: Arc::new(Mutex::new(frame)) }
    }

    /// Never so small that nothing at all can be laid out: a line is one less than there are columns.
    pub fn size(&self) -> (u16, u16) {
        let (columns, rows) = (self.size)();
        (columns.max(2), rows.max(3))
    }

    fn frame(&self, change: impl FnOnce(&mut Frame)) -> io::Result<()> {
        change(&mut self.frame.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn control(&self, count: usize, letter: char) -> io::Result<()> {
        self.frame(|frame| {
            if count > 0 {
                frame.owes_line_feed = false;
                frame.bytes.extend_from_slice(format!("\x1b[{count}{letter}").as_bytes());
            }
        })
    }

    /// Leaves the cursor at the start of a line of its own.
    pub fn close(&self) {
        // `frame` and `flush` never fail.
        let _ = self.frame(|frame| {
            if std::mem::take(&mut frame.owes_line_feed) {
                frame.bytes.extend_from_slice(b"\r\n");
            }
        });
        let _ = self.flush();
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Screen")
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        self.size().0
    }

    fn height(&self) -> u16 {
        self.size().1
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.control(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.control(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.control(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.control(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        self.write_str("\n")
    }

    /// indicatif has no line feeds: it fills each line with blanks up to the edge and lets it wrap.
    /// A window made narrower would fold all those lines, so a text of blanks ends a line here
    /// instead, and the line feed is written when another line follows.
    fn write_str(&self, text: &str) -> io::Result<()> {
        self.frame(|frame| {
            if frame.owes_line_feed {
                frame.bytes.extend_from_slice(b"\r\n");
            }
            frame.owes_line_feed = text.bytes().all(|byte| byte == b' ');
            let text = if frame.owes_line_feed { "\x1b[K" } else { text };
            frame.bytes.extend_from_slice(text.as_bytes());
        })
    }

    fn clear_line(&self) -> io::Result<()> {
        self.frame(|frame| {
            frame.owes_line_feed = false;
            frame.bytes.extend_from_slice(b"\r\x1b[2K");
        })
    }

    /// A terminal that is gone is no error: nothing more is written to it.
    fn flush(&self) -> io::Result<()> {
        self.frame(|frame| {
            let bytes = std::mem::take(&mut frame.bytes);
            if !frame.is_broken && !bytes.is_empty() {
                frame.is_broken = frame.writer.write_all(&bytes).and_then(|()| frame.writer.flush()).is_err();
            }
        })
    }
}
