//! A reader of pickles that executes nothing: it builds the objects that a checkpoint consists of as nodes of an arena.
//!
//! Every node costs the file at least one byte, a reference to a node costs nothing more, and a [`Budget`] bounds the
//! nodes and the bytes of text of all pickles of a file. So memory is bounded however the objects refer to each other,
//! and walking them is bounded by [`Pickle::tensors`].

use std::{
    collections::HashMap,
    io::{BufRead, Read},
};

use burn::tensor::{BoolStore, DType};

use super::limits::{MAX_NAME, MAX_RANK, MAX_TENSORS};

/// What the pickles of one file may hold in all.
#[derive(Debug)]
pub struct Budget {
    opcodes: u64,
    bytes: u64,
}

impl Default for Budget {
    /// A ResNet-152 with Adam's state needs some 100,000 opcodes in 2 MB.
    fn default() -> Self {
        Self { opcodes: 2_000_000, bytes: 64 << 20 }
    }
}

/// An index of a node.
type Id = u32;

/// An object, as far as it matters.
#[derive(Debug, Clone)]
pub enum Node {
    /// A value that no tensor depends on.
    Other,
    Bool(bool),
    Int(i64),
    Text(Box<str>),
    /// A list, tuple or set.
    List(Vec<Id>),
    /// A dictionary, in the order of insertion.
    Dict(Vec<(Id, Id)>),
    /// A class or function: its module and name.
    Global(Box<str>, Box<str>),
    /// A reference to something outside of the pickle.
    Persistent(Id),
    Tensor(Box<TensorSpec>),
    /// An instance of a class that is not interpreted, with its attributes once they are set.
    Object {
        state: Option<Id>,
    },
}

/// A tensor as the pickle declares it.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    pub storage: Storage,
    pub dtype: DType,
    /// The index of the first value in the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// A storage as a persistent reference declares it.
#[derive(Debug, Clone)]
pub struct Storage {
    pub key: Box<str>,
    /// None for bytes without a type.
    pub dtype: Option<DType>,
    /// The number of values.
    pub len: usize,
    /// The index of the first value, for the views of old files.
    pub start: usize,
}

/// A value found in a pickle, by the path of keys that leads to it.
#[derive(Debug)]
pub enum Found {
    Tensor(TensorSpec),
    /// A persistent reference that is no storage: a tensor's key in a tar archive.
    Key(String),
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

type Result<T> = std::result::Result<T, String>;

impl Pickle {
    /// Reads one pickle and leaves `reader` behind it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(reader: &mut impl BufRead, budget: &mut Budget) -> Result<Self> {
        let (nodes, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
        let mut machine = Machine { reader, budget, nodes, stack, marks, memo: HashMap::new(), tensors: 0 };
        let root = machine.run()?;
        Ok(Self { nodes: machine.nodes, root })
    }

    /// Returns the root.
    pub fn root(&self) -> &Node {
        &self.nodes[self.root as usize]
    }

    /// Returns the items of a list or tuple.
    pub fn items<'a>(&'a self, node: &'a Node) -> Option<Vec<&'a Node>> {
        match node {
            Node::List(items) => Some(items.iter().map(|id| &self.nodes[*id as usize]).collect()),
            _ => None,
        }
    }

    /// Returns the value of a key of a dictionary.
    pub fn get<'a>(&'a self, node: &'a Node, key: &str) -> Option<&'a Node> {
        match node {
            Node::Dict(pairs) => find(&self.nodes, pairs, key).map(|id| &self.nodes[id as usize]),
            _ => None,
        }
    }

    /// Returns every storage that the pickle refers to.
    pub fn storages(&self) -> Result<Vec<Storage>> {
        let ids = self.nodes.iter().filter_map(|node| match node {
            Node::Persistent(id) => Some(*id),
            _ => None,
        });
        ids.take(MAX_TENSORS + 1).map(|id| storage(&self.nodes, id)).collect()
    }

    /// Returns the tensors by the paths of keys, indices and attributes that lead to them: `state_dict.conv1.weight`.
    ///
    /// # Errors
    /// Where there are too many, or their names are too long: objects may contain each other.
    pub fn tensors(&self) -> Result<Vec<(String, Found)>> {
        let mut found = Vec::new();
        let mut ahead = vec![(self.root, String::new())];
        let (mut visited, mut text) = (0usize, 0usize);
        while let Some((id, path)) = ahead.pop() {
            visited += 1;
            if visited > 10 * MAX_TENSORS || found.len() > MAX_TENSORS {
                return Err("its objects contain each other too often, or there are too many tensors".to_string());
            }
            let mut push = |key: &str, id: Id| {
                if !matches!(
                    self.nodes[id as usize],
                    Node::List(_) | Node::Dict(_) | Node::Object { .. } | Node::Tensor(_) | Node::Persistent(_)
                ) {
                    return Ok(());
                }
                let name = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                text += name.len();
                if name.len() > MAX_NAME || text > 64 << 20 {
                    return Err(format!(
                        "its objects are nested too deeply, or a name is longer than {MAX_NAME} bytes"
                    ));
                }
                ahead.push((id, name));
                Ok(())
            };
            match &self.nodes[id as usize] {
                Node::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        push(&index.to_string(), *item)?;
                    }
                }
                Node::Dict(pairs) => {
                    for (key, value) in pairs {
                        match &self.nodes[*key as usize] {
                            Node::Text(key) => push(key, *value)?,
                            Node::Int(key) => push(&key.to_string(), *value)?,
                            _ => {}
                        }
                    }
                }
                Node::Object { state: Some(state) } => {
                    for (key, value) in self.attributes(*state) {
                        push(key, value)?;
                    }
                }
                Node::Tensor(tensor) => found.push((path, Found::Tensor(TensorSpec::clone(tensor)))),
                Node::Persistent(key) => {
                    if let Some(key) = key_text(&self.nodes, *key) {
                        found.push((path, Found::Key(key)));
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Returns the attributes of an object; of a PyTorch module the parameters, buffers and children, as its
    /// `state_dict()` has them.
    fn attributes(&self, state: Id) -> Vec<(&str, Id)> {
        let Node::Dict(pairs) = &self.nodes[state as usize] else { return Vec::new() };
        let named = |pairs: &[(Id, Id)]| -> Vec<(&str, Id)> {
            let text = |(key, value): &(Id, Id)| match &self.nodes[*key as usize] {
                Node::Text(key) => Some((&**key, *value)),
                _ => None,
            };
            pairs.iter().filter_map(text).collect()
        };
        let tables = ["_parameters", "_buffers", "_modules"].map(|table| find(&self.nodes, pairs, table));
        if !tables.iter().all(Option::is_some) {
            return named(pairs);
        }
        // Buffers outside of `state_dict()`.
        let excluded: Vec<&str> = match find(&self.nodes, pairs, "_non_persistent_buffers_set") {
            Some(set) => match &self.nodes[set as usize] {
                Node::List(items) => items.iter().filter_map(|id| text(&self.nodes, *id)).collect(),
                _ => Vec::new(),
            },
            None => Vec::new(),
        };
        let entries = tables.into_iter().flatten().flat_map(|table| match &self.nodes[table as usize] {
            Node::Dict(pairs) => named(pairs),
            _ => Vec::new(),
        });
        entries.filter(|(name, _)| !excluded.contains(name)).collect()
    }
}

fn text(nodes: &[Node], id: Id) -> Option<&str> {
    match &nodes[id as usize] {
        Node::Text(text) => Some(text),
        _ => None,
    }
}

/// Finds a key; the last of equal ones, as Python does.
fn find(nodes: &[Node], pairs: &[(Id, Id)], key: &str) -> Option<Id> {
    pairs.iter().rev().find(|(id, _)| text(nodes, *id) == Some(key)).map(|(_, value)| *value)
}

/// A key, which PyTorch writes as text or as a number.
fn key_text(nodes: &[Node], id: Id) -> Option<String> {
    match &nodes[id as usize] {
        Node::Text(text) => Some(text.to_string()),
        Node::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

fn size(nodes: &[Node], id: Id, what: &str) -> Result<usize> {
    match nodes[id as usize] {
        Node::Int(number) => usize::try_from(number).map_err(|_| format!("{what} is {number}")),
        _ => Err(format!("{what} is not a number")),
    }
}

fn sizes(nodes: &[Node], id: Id, what: &str) -> Result<Vec<usize>> {
    match &nodes[id as usize] {
        Node::List(items) if items.len() <= MAX_RANK => items.iter().map(|id| size(nodes, *id, what)).collect(),
        _ => Err(format!("{what} is not a list of at most {MAX_RANK} numbers")),
    }
}

/// Reads `('storage', type, key, location, number of values, view)`, where a view is None or `(key, start, length)`.
fn storage(nodes: &[Node], id: Id) -> Result<Storage> {
    let fields = match &nodes[id as usize] {
        Node::List(fields) if fields.len() >= 5 && text(nodes, fields[0]) == Some("storage") => fields,
        _ => return Err("a reference is not to a storage".to_string()),
    };
    let kind = match &nodes[fields[1] as usize] {
        Node::Global(_, name) | Node::Text(name) => name,
        _ => return Err("a storage has no type".to_string()),
    };
    let dtype = match &**kind {
        "UntypedStorage" => None,
        kind => Some(storage_dtype(kind)?),
    };
    let key = key_text(nodes, fields[2]).filter(|key| key.len() <= 64).ok_or("a storage has no key, or a long one")?;
    let len = size(nodes, fields[4], "the length of a storage")?;
    let mut storage = Storage { key: key.into(), dtype, len, start: 0 };
    if let Some(view) = fields.get(5).filter(|view| matches!(nodes[**view as usize], Node::List(_))) {
        let Node::List(view) = &nodes[*view as usize] else { return Ok(storage) };
        let [_, start, length] = view[..] else { return Err("a storage's view has no three fields".to_string()) };
        let (start, length) = (size(nodes, start, "a view's start")?, size(nodes, length, "a view's length")?);
        match start.checked_add(length) {
            Some(end) if end <= storage.len => storage = Storage { len: end, start, ..storage },
            _ => return Err(format!("a view of {length} values from {start} on exceeds its storage")),
        }
    }
    Ok(storage)
}

/// Returns the type of the values of a storage class.
pub fn storage_dtype(class: &str) -> Result<DType> {
    Ok(match class {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool(BoolStore::Native),
        _ => return Err(format!("it has values of the type torch.{class}, which are not supported")),
    })
}

fn torch_dtype(name: &str) -> Result<DType> {
    Ok(match name {
        "float32" | "float" => DType::F32,
        "float64" | "double" => DType::F64,
        "float16" | "half" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" | "long" => DType::I64,
        "int32" | "int" => DType::I32,
        "int16" | "short" => DType::I16,
        "int8" => DType::I8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "uint8" => DType::U8,
        "bool" => DType::Bool(BoolStore::Native),
        _ => return Err(format!("it has values of the type torch.{name}, which are not supported")),
    })
}

/// The stack machine of pickles.
struct Machine<'a, R> {
    reader: &'a mut R,
    budget: &'a mut Budget,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// The heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    tensors: usize,
}

impl<R: BufRead> Machine<'_, R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.spend(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| format!("its pickle ends early: {error}"))?;
        Ok(bytes)
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        match self.budget.bytes.checked_sub(bytes) {
            Some(left) => {
                self.budget.bytes = left;
                Ok(())
            }
            None => Err("its pickle is larger than that of any network".to_string()),
        }
    }

    fn counted(&mut self, length: u64) -> Result<Vec<u8>> {
        self.spend(length)?;
        let mut bytes = Vec::new();
        self.reader.by_ref().take(length).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err("its pickle ends early".to_string()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let limit = self.budget.bytes;
        self.reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        self.spend(line.len() as u64)?;
        match line.pop() {
            Some(b'\n') => Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_string()),
            _ => Err("its pickle ends early".to_string()),
        }
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        (self.nodes.len() - 1) as Id
    }

    fn push(&mut self, node: Node) {
        let id = self.add(node);
        self.stack.push(id);
    }

    fn push_text(&mut self, length: u64) -> Result<()> {
        let bytes = self.counted(length)?;
        self.push(Node::Text(String::from_utf8_lossy(&bytes).into()));
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        self.counted(length)?;
        self.push(Node::Other);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack[self.stack.len() - 1]).inspect(|_| {
                self.stack.pop();
            }),
            false => Err("its pickle takes more values than it has".to_string()),
        }
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| "its pickle takes more values than it has".to_string())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or("its pickle has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::List(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        if let Node::List(list) = &mut self.nodes[list as usize] {
            list.extend(items);
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("its pickle has a key without a value".to_string());
        }
        let dict = self.top()?;
        if let Node::Dict(dict) = &mut self.nodes[dict as usize] {
            dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let id = *self.memo.get(&index).ok_or("its pickle recalls what it did not store")?;
        self.stack.push(id);
        Ok(())
    }

    fn memoize(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn run(&mut self) -> Result<Id> {
        loop {
            self.budget.opcodes =
                self.budget.opcodes.checked_sub(1).ok_or("its pickle has more objects than that of any network")?;
            let [opcode] = self.bytes()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => match self.bytes()? {
                    [0..=5] => {}
                    [protocol] => return Err(format!("its pickle has the unknown protocol {protocol}")),
                },
                0x95 => drop(self.bytes::<8>()?),
                b'N' => self.push(Node::Other),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'I' => {
                    let line = self.line()?;
                    self.push(match line.as_str() {
                        "00" => Node::Bool(false),
                        "01" => Node::Bool(true),
                        number => number.parse().map_or(Node::Other, Node::Int),
                    });
                }
                b'L' => {
                    let line = self.line()?;
                    self.push(line.trim_end_matches('L').parse().map_or(Node::Other, Node::Int));
                }
                b'F' => {
                    self.line()?;
                    self.push(Node::Other);
                }
                b'V' | b'S' => {
                    let line = self.line()?;
                    self.push(Node::Text(line.trim_matches(['\'', '"']).into()));
                }
                b'J' => {
                    let number = i32::from_le_bytes(self.bytes()?);
                    self.push(Node::Int(number.into()));
                }
                b'K' => {
                    let [number] = self.bytes()?;
                    self.push(Node::Int(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.bytes()?);
                    self.push(Node::Int(number.into()));
                }
                b'G' => self.skip(8)?,
                0x8a => {
                    let [length] = self.bytes()?;
                    let bytes = self.counted(length.into())?;
                    self.push(long(&bytes));
                }
                0x8b => {
                    let length = u32::from_le_bytes(self.bytes()?);
                    let bytes = self.counted(length.into())?;
                    self.push(long(&bytes));
                }
                b'U' | 0x8c => {
                    let [length] = self.bytes()?;
                    self.push_text(length.into())?;
                }
                b'T' | b'X' => {
                    let length = u32::from_le_bytes(self.bytes()?);
                    self.push_text(length.into())?;
                }
                0x8d => {
                    let length = u64::from_le_bytes(self.bytes()?);
                    self.push_text(length)?;
                }
                b'C' => {
                    let [length] = self.bytes()?;
                    self.skip(length.into())?;
                }
                b'B' => {
                    let length = u32::from_le_bytes(self.bytes()?);
                    self.skip(length.into())?;
                }
                0x8e | 0x96 => {
                    let length = u64::from_le_bytes(self.bytes()?);
                    self.skip(length)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b')' | b']' | 0x8f => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                b't' | b'l' | 0x91 => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::List(items));
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Dict(Vec::new()));
                    self.set_items(&items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'0' => match self.marks.last() == Some(&self.stack.len()) {
                    true => drop(self.marks.pop()),
                    false => drop(self.pop()?),
                },
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'g' => {
                    let index = self.line()?.parse().map_err(|_| "its pickle recalls no number")?;
                    self.recall(index)?;
                }
                b'h' => {
                    let [index] = self.bytes()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.bytes()?);
                    self.recall(index)?;
                }
                b'p' => {
                    let index = self.line()?.parse().map_err(|_| "its pickle stores under no number")?;
                    self.memoize(index)?;
                }
                b'q' => {
                    let [index] = self.bytes()?;
                    self.memoize(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.bytes()?);
                    self.memoize(index)?;
                }
                0x94 => {
                    let index = self.memo.len() as u32;
                    self.memoize(index)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    if module.len().max(name.len()) > MAX_NAME {
                        return Err(format!("its pickle names a class with more than {MAX_NAME} bytes"));
                    }
                    self.push(Node::Global(module.into(), name.into()));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let short = |id| text(&self.nodes, id).filter(|text| text.len() <= MAX_NAME);
                    let (Some(module), Some(name)) = (short(module), short(name)) else {
                        return Err("its pickle names a class that is no text, or a long one".to_string());
                    };
                    let global = Node::Global(module.into(), name.into());
                    self.push(global);
                }
                b'P' => {
                    let key = self.line()?;
                    let key = self.add(Node::Text(key.into()));
                    self.push(Node::Persistent(key));
                }
                b'Q' => {
                    let key = self.pop()?;
                    self.push(Node::Persistent(key));
                }
                b'R' => {
                    let arguments = self.pop()?;
                    let callee = self.pop()?;
                    let result = self.call(callee, arguments, 0)?;
                    self.stack.push(result);
                }
                0x81 => {
                    self.pop()?;
                    let class = self.pop()?;
                    self.push_instance(class);
                }
                0x92 => {
                    self.pop()?;
                    self.pop()?;
                    let class = self.pop()?;
                    self.push_instance(class);
                }
                b'b' => {
                    let state = self.pop()?;
                    let object = self.top()?;
                    self.build(object, state);
                }
                other => return Err(format!("its pickle has the unsupported opcode 0x{other:02x}")),
            }
        }
    }

    /// Creates an instance of a class; of a dictionary's subclass a dictionary, so that its items have a place.
    fn push_instance(&mut self, class: Id) {
        let is_dict = matches!(&self.nodes[class as usize], Node::Global(_, name)
            if matches!(&**name, "OrderedDict" | "dict" | "defaultdict" | "AttributeDict" | "ConfigDict"));
        self.push(if is_dict { Node::Dict(Vec::new()) } else { Node::Object { state: None } });
    }

    /// Sets an object's attributes. A dictionary's own, such as the `_metadata` of a `state_dict`, do not matter.
    fn build(&mut self, object: Id, new: Id) {
        // Objects with slots have a pair of dictionaries.
        let new = match &self.nodes[new as usize] {
            Node::List(pair) if pair.len() == 2 => match self.nodes[pair[0] as usize] {
                Node::Dict(_) => pair[0],
                _ => pair[1],
            },
            _ => new,
        };
        if let Node::Object { state } = &mut self.nodes[object as usize] {
            *state = Some(new);
        }
    }

    /// Calls a function: those that PyTorch rebuilds tensors with, and the constructors of collections. All others
    /// return an object without content.
    fn call(&mut self, callee: Id, arguments: Id, depth: u32) -> Result<Id> {
        let (module, name) = match &self.nodes[callee as usize] {
            Node::Global(module, name) => (module.to_string(), name.to_string()),
            _ => return Ok(self.add(Node::Other)),
        };
        let Node::List(fields) = &self.nodes[arguments as usize] else {
            return Err(format!("{module}.{name} is called without a tuple"));
        };
        let field = |index: usize| fields.get(index).copied().ok_or(format!("{name} is called with too few arguments"));
        match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => {
                let pairs = match fields.last().map(|items| &self.nodes[*items as usize]) {
                    Some(Node::List(items)) => {
                        let pair = |id: &Id| match &self.nodes[*id as usize] {
                            Node::List(pair) => {
                                <[Id; 2]>::try_from(pair.as_slice()).ok().map(|[key, value]| (key, value))
                            }
                            _ => None,
                        };
                        // Each item was pushed for this call, or is referred to by a list that counts against the
                        // budget once more here.
                        items.iter().filter_map(pair).collect()
                    }
                    Some(Node::Dict(pairs)) => pairs.clone(),
                    _ => Vec::new(),
                };
                self.spend(pairs.len() as u64 * 8)?;
                Ok(self.add(Node::Dict(pairs)))
            }
            ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => match fields.first() {
                Some(items) => Ok(*items),
                None => Ok(self.add(Node::List(Vec::new()))),
            },
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => field(0),
            ("torch._tensor", "_rebuild_from_type_v2") if depth < 8 => {
                let (function, inner) = (field(0)?, field(2)?);
                self.call(function, inner, depth + 1)
            }
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                let reference = match self.nodes[field(0)? as usize] {
                    Node::Persistent(id) => id,
                    _ => return Err(format!("{name} is called without a storage")),
                };
                let storage = storage(&self.nodes, reference)?;
                let dtype = match (name.as_str(), storage.dtype) {
                    ("_rebuild_tensor_v3", _) => match &self.nodes[field(6)? as usize] {
                        Node::Global(_, name) => torch_dtype(name)?,
                        _ => return Err("a tensor has no type".to_string()),
                    },
                    (_, Some(dtype)) => dtype,
                    (_, None) => return Err("a tensor has no type".to_string()),
                };
                let tensor = TensorSpec {
                    dtype,
                    offset: size(&self.nodes, field(1)?, "a tensor's offset")?,
                    shape: sizes(&self.nodes, field(2)?, "a tensor's shape")?,
                    strides: sizes(&self.nodes, field(3)?, "a tensor's strides")?,
                    storage,
                };
                self.tensors += 1;
                match self.tensors <= MAX_TENSORS {
                    true => Ok(self.add(Node::Tensor(Box::new(tensor)))),
                    false => Err(format!("it has more than {MAX_TENSORS} tensors")),
                }
            }
            ("torch._utils", name) if name.starts_with("_rebuild_") && name.contains("tensor") => Err(format!(
                "it has tensors of a kind that is not supported (torch._utils.{name}: sparse, quantized or nested); \
                 save them as dense floats"
            )),
            _ => Ok(self.add(Node::Object { state: None })),
        }
    }
}

/// A Python integer in two's complement; one of more than 64 bits is no size.
fn long(bytes: &[u8]) -> Node {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let mut number = [fill; 8];
    let fits = bytes.len() <= 8 || (bytes[8..].iter().all(|byte| *byte == fill) && (bytes[7] & 0x80 != 0) == negative);
    match fits {
        true => {
            let len = bytes.len().min(8);
            number[..len].copy_from_slice(&bytes[..len]);
            Node::Int(i64::from_le_bytes(number))
        }
        false => Node::Other,
    }
}
