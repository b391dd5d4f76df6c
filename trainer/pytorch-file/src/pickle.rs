//! The pickle machine, reduced to what builds data. Names of classes and functions are read and nothing is looked up or
//! called; `call.rs` knows the few that stand for tensors.
//!
//! <https://github.com/python/cpython/blob/3.13/Lib/pickletools.py>

mod instructions;

use std::collections::HashMap;
use std::ops::Range;

use super::call::call;
use super::error::Error;
use super::value::{Global, Id, Object, Value};

/// Bound on values, on their entries together, and on entries of stack and memo. A ResNet-101 detector with its
/// optimizer has 20,000 values.
const MAX_VALUES: usize = 1 << 22;

/// Bound on the bytes of a name or key, which is decoded wherever the pickle refers to it.
pub(crate) const MAX_NAME: usize = 1024;

/// The values of one pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) values: Vec<Value>,
    /// The value of the whole.
    pub(crate) root: Id,
    /// Position after its end.
    pub(crate) end: usize,
}

impl Pickle {
    /// Reads the pickle that begins at `start`.
    pub(crate) fn read(bytes: &[u8], start: usize) -> Result<Self, Error> {
        Machine {
            bytes,
            position: start,
            values: Vec::new(),
            entries: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
        .run()
    }
}

/// The text of a range that was checked when its value was made.
pub(crate) fn text<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a str {
    bytes.get(range.clone()).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
}

/// A name: a text, or bytes that are one, as Python 2 writes them. None if it is too long.
pub(crate) fn word<'a>(bytes: &'a [u8], value: &Value) -> Option<&'a str> {
    match value {
        Value::Text(range) | Value::Bytes(range) if range.len() <= MAX_NAME => {
            str::from_utf8(bytes.get(range.clone())?).ok()
        }
        _ => None,
    }
}

/// The state of the machine while it reads.
pub(crate) struct Machine<'a> {
    pub(crate) bytes: &'a [u8],
    position: usize,
    pub(crate) values: Vec<Value>,
    /// Number of entries of all values, which a call may copy.
    entries: usize,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, Error> {
        loop {
            let position = self.position;
            let opcode = self.bytes.get(position).copied();
            self.position += 1;
            match opcode {
                None => return Err(Error::Truncated { what: "the pickle", position }),
                Some(b'.') => return Ok(Pickle { root: self.pop()?, values: self.values, end: self.position }),
                Some(opcode) => self.step(opcode)?,
            }
            let counts = [self.values.len(), self.entries, self.stack.len(), self.marks.len(), self.memo.len()];
            if counts.iter().any(|count| *count > MAX_VALUES) {
                return Err(Error::Limit { what: "more than 4194304 values or entries" });
            }
        }
    }

    pub(crate) fn error(&self, what: &str) -> Error {
        Error::Pickle { what: what.to_owned(), position: self.position.saturating_sub(1) }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.entries += value.entries();
        self.values.push(value);
    }

    fn replace(&mut self, id: Id, value: Value) {
        self.entries += value.entries();
        self.values[id] = value;
    }

    fn pop(&mut self) -> Result<Id, Error> {
        let above_mark = self.marks.last().is_none_or(|mark| self.stack.len() > *mark);
        self.stack.pop().filter(|_| above_mark).ok_or_else(|| self.error("the stack is empty"))
    }

    fn top(&self) -> Result<Id, Error> {
        self.stack.last().copied().ok_or_else(|| self.error("the stack is empty"))
    }

    /// The values above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Error> {
        let mark = self.marks.pop().ok_or_else(|| self.error("there is no mark on the stack"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, Error> {
        let start = self.position;
        let end = start.checked_add(length).filter(|end| *end <= self.bytes.len());
        self.position = end.ok_or(Error::Truncated { what: "a value", position: start })?;
        Ok(start..self.position)
    }

    /// The rest of a line, without its end.
    fn line(&mut self) -> Result<Range<usize>, Error> {
        let start = self.position;
        let rest = self.bytes.get(start..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n');
        let length = length.ok_or(Error::Truncated { what: "a line", position: start })?;
        self.position += length + 1;
        if str::from_utf8(&rest[..length]).is_err() {
            return Err(self.error("a line that is not UTF-8"));
        }
        Ok(start..start + length)
    }

    /// An unsigned little-endian number.
    fn number(&mut self, size: usize) -> Result<usize, Error> {
        let range = self.take(size)?;
        Ok(self.bytes[range].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// An integer of one, two or four bytes; only that of four has a sign.
    fn integer(&mut self, size: usize) -> Result<(), Error> {
        let number = self.number(size)?;
        self.push(Value::Int(if size == 4 { i64::from(number as i32) } else { number as i64 }));
        Ok(())
    }

    /// A text after its length, which takes `size` bytes.
    fn text(&mut self, size: usize) -> Result<(), Error> {
        let length = self.number(size)?;
        let range = self.take(length)?;
        if str::from_utf8(&self.bytes[range.clone()]).is_err() {
            return Err(self.error("a text that is not UTF-8"));
        }
        self.push(Value::Text(range));
        Ok(())
    }

    /// Bytes after their length, which takes `size` bytes.
    fn string(&mut self, size: usize) -> Result<(), Error> {
        let length = self.number(size)?;
        let range = self.take(length)?;
        self.push(Value::Bytes(range));
        Ok(())
    }

    fn memo_index(&mut self, is_line: bool, size: usize) -> Result<usize, Error> {
        if !is_line {
            return self.number(size);
        }
        let line = self.line()?;
        text(self.bytes, &line).parse().map_err(|_| self.error("an entry of the memo that is no number"))
    }

    fn memoize(&mut self, index: usize) -> Result<(), Error> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    /// Adds elements to the list on top of the stack; those of other collections are not needed.
    fn extend(&mut self, elements: &[Id]) -> Result<(), Error> {
        let top = self.top()?;
        if let Value::List(list) = &mut self.values[top] {
            list.extend(elements);
            self.entries += elements.len();
        }
        Ok(())
    }

    /// Adds keys and values to the dictionary on top of the stack.
    fn insert(&mut self, entries: &[Id]) -> Result<(), Error> {
        let top = self.top()?;
        if let Value::Dict(items) | Value::Object(Object { items, .. }) = &mut self.values[top] {
            items.extend(entries.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)));
            self.entries += entries.len() / 2;
        }
        Ok(())
    }

    fn global(&mut self, global: Global) -> Result<(), Error> {
        if global.module.len().max(global.name.len()) > MAX_NAME {
            return Err(self.error("a name of more than 1024 bytes"));
        }
        let (module, name) = (text(self.bytes, &global.module), text(self.bytes, &global.name));
        if is_harmful(module, name) {
            return Err(Error::Harmful { name: format!("{module}.{name}") });
        }
        self.push(Value::Global(global));
        Ok(())
    }

    fn call(&mut self, function: Id, arguments: Id) -> Result<(), Error> {
        let value = call(self, function, arguments).map_err(|what| self.error(&what))?;
        self.push(value);
        Ok(())
    }
}

/// Whether a class or function runs commands or code, or changes files. Nothing is called here; the check warns of files
/// that would do harm elsewhere.
fn is_harmful(module: &str, name: &str) -> bool {
    const MODULES: [&str; 13] = [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "socket",
        "shutil",
        "runpy",
        "pty",
        "ctypes",
        "importlib",
        "webbrowser",
        "commands",
    ];
    const BUILTINS: [&str; 7] = ["eval", "exec", "execfile", "compile", "open", "__import__", "breakpoint"];
    let package = module.split('.').next().unwrap_or_default();
    MODULES.contains(&package)
        || ["builtins", "__builtin__"].contains(&package)
            && BUILTINS.contains(&name.split('.').next().unwrap_or_default())
}
