//! What each instruction of a pickle does, with its name in
//! [pickletools](https://github.com/python/cpython/blob/3.13/Lib/pickletools.py).

use super::{Machine, text};
use crate::call::{build, persistent};
use crate::error::Error;
use crate::value::{Global, Object, Value};

impl Machine<'_> {
    /// Executes an instruction: those of protocol, stack and memo here, others in the functions below.
    pub(super) fn step(&mut self, opcode: u8) -> Result<(), Error> {
        match opcode {
            0x80 => _ = self.take(1)?,                 // PROTO
            0x95 => _ = self.take(8)?,                 // FRAME
            b'(' => self.marks.push(self.stack.len()), // MARK
            b'0' => _ = self.pop()?,                   // POP
            b'1' => _ = self.pop_mark()?,              // POP_MARK
            // DUP
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // GET, BINGET, LONG_BINGET
            b'g' | b'h' | b'j' => {
                let index = self.memo_index(opcode == b'g', if opcode == b'h' { 1 } else { 4 })?;
                let id = *self.memo.get(&index).ok_or_else(|| self.error("an unknown entry of the memo"))?;
                self.stack.push(id);
            }
            // PUT, BINPUT, LONG_BINPUT
            b'p' | b'q' | b'r' => {
                let index = self.memo_index(opcode == b'p', if opcode == b'q' { 1 } else { 4 })?;
                self.memoize(index)?;
            }
            0x94 => self.memoize(self.memo.len())?, // MEMOIZE
            other => self.scalar(other)?,
        }
        Ok(())
    }

    /// Pushes None, a truth value, a number, a text or bytes.
    fn scalar(&mut self, opcode: u8) -> Result<(), Error> {
        match opcode {
            b'N' => self.push(Value::None),                                               // NONE
            0x88 => self.push(Value::Bool(true)),                                         // NEWTRUE
            0x89 => self.push(Value::Bool(false)),                                        // NEWFALSE
            b'K' => self.integer(1)?,                                                     // BININT1
            b'M' => self.integer(2)?,                                                     // BININT2
            b'J' => self.integer(4)?,                                                     // BININT
            0x8A => self.long(1)?,                                                        // LONG1
            0x8B => self.long(4)?,                                                        // LONG4
            b'I' | b'L' => self.of_line(integer)?,                                        // INT, LONG
            b'F' => self.of_line(|text| text.parse().map_or(Value::None, Value::Float))?, // FLOAT
            // BINFLOAT
            b'G' => {
                let bits = self.number(8)? as u64;
                self.push(Value::Float(f64::from_bits(bits.swap_bytes())));
            }
            b'X' => self.text(4)?, // BINUNICODE
            0x8C => self.text(1)?, // SHORT_BINUNICODE
            0x8D => self.text(8)?, // BINUNICODE8
            // UNICODE
            b'V' => {
                let line = self.line()?;
                self.push(Value::Text(line));
            }
            b'U' | b'C' => self.string(1)?, // SHORT_BINSTRING, SHORT_BINBYTES
            b'T' | b'B' => self.string(4)?, // BINSTRING, BINBYTES
            0x8E | 0x96 => self.string(8)?, // BINBYTES8, BYTEARRAY8
            b'S' => self.quoted()?,         // STRING
            other => self.collection(other)?,
        }
        Ok(())
    }

    /// Pushes a signed number after its length, which takes `size` bytes.
    fn long(&mut self, size: usize) -> Result<(), Error> {
        let length = self.number(size)?;
        let range = self.take(length)?;
        self.push(long(&self.bytes[range]));
        Ok(())
    }

    /// Pushes the value that a line of text has.
    fn of_line(&mut self, value: fn(&str) -> Value) -> Result<(), Error> {
        let line = self.line()?;
        self.push(value(text(self.bytes, &line)));
        Ok(())
    }

    /// Pushes the text in quotes of a line.
    fn quoted(&mut self) -> Result<(), Error> {
        let line = self.line()?;
        let quoted = &self.bytes[line.clone()];
        if quoted.len() < 2 || quoted.contains(&b'\\') {
            return Err(self.error("a string with escapes, which only protocol 0 has; save it with protocol 2"));
        }
        self.push(Value::Text(line.start + 1..line.end - 1));
        Ok(())
    }

    /// Makes or extends a tuple, a list, a set (as a list) or a dictionary.
    fn collection(&mut self, opcode: u8) -> Result<(), Error> {
        match opcode {
            b')' => self.push(Value::Tuple(Vec::new())), // EMPTY_TUPLE
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let height = self.stack.len().checked_sub(count).ok_or_else(|| self.error("the stack is empty"))?;
                let elements = self.stack.split_off(height);
                self.push(Value::Tuple(elements));
            }
            b't' => self.pop_mark().map(|elements| self.push(Value::Tuple(elements)))?, // TUPLE
            b']' | 0x8F => self.push(Value::List(Vec::new())),                          // EMPTY_LIST, EMPTY_SET
            b'l' | 0x91 => self.pop_mark().map(|elements| self.push(Value::List(elements)))?, // LIST, FROZENSET
            b'a' => self.pop().and_then(|element| self.extend(&[element]))?,            // APPEND
            b'e' | 0x90 => self.pop_mark().and_then(|elements| self.extend(&elements))?, // APPENDS, ADDITEMS
            b'}' => self.push(Value::Dict(Vec::new())),                                 // EMPTY_DICT
            // DICT
            b'd' => {
                let entries = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()));
                self.insert(&entries)?;
            }
            // SETITEM
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => self.pop_mark().and_then(|entries| self.insert(&entries))?, // SETITEMS
            other => self.object(other)?,
        }
        Ok(())
    }

    /// Names a class or function, or makes what a call of it stands for.
    fn object(&mut self, opcode: u8) -> Result<(), Error> {
        match opcode {
            // GLOBAL
            b'c' => {
                let global = Global { module: self.line()?, name: self.line()? };
                self.global(global)?;
            }
            0x93 => self.stack_global()?, // STACK_GLOBAL
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            // NEWOBJ_EX
            0x92 => {
                let (_, arguments, function) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            // OBJ
            b'o' => {
                let _ = self.pop_mark()?;
                self.push(Value::Object(Object::default()));
            }
            // INST
            b'i' => {
                let global = Global { module: self.line()?, name: self.line()? };
                self.global(global)?;
                let _ = (self.pop()?, self.pop_mark()?);
                self.push(Value::Object(Object::default()));
            }
            // BUILD
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                if let Some(value) = build(self, target, state).map_err(|what| self.error(&what))? {
                    self.replace(target, value);
                }
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                let value = persistent(self, id).map_err(|what| self.error(&what))?;
                self.push(value);
            }
            other => return Err(self.error(&format!("unknown instruction {other:#04x}"))),
        }
        Ok(())
    }

    /// Names a class or function with the two texts on the stack.
    fn stack_global(&mut self) -> Result<(), Error> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (Value::Text(name), Value::Text(module)) = (&self.values[name], &self.values[module]) else {
            return Err(self.error("a name that is no text"));
        };
        self.global(Global { module: module.clone(), name: name.clone() })
    }
}

/// A truth value or an integer in decimals; none if it exceeds 64 bits.
fn integer(text: &str) -> Value {
    match text {
        "00" => Value::Bool(false),
        "01" => Value::Bool(true),
        digits => digits.trim_end_matches('L').parse().map_or(Value::None, Value::Int),
    }
}

/// A signed little-endian integer; none if it exceeds 64 bits.
fn long(bytes: &[u8]) -> Value {
    let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 };
    let mut number = [fill; 8];
    match number.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(number))
        }
        None => Value::None,
    }
}
