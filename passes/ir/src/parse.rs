//! Reads the [text form](crate::print) back.
//!
//! A hand-written parser, a line at a time, since every statement is one line and errors need a column. Operands may be
//! defined later, so that a graph on a cycle, which the verifier rejects, can still be read. No input makes it panic.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::{ClearOp, Reduction, Tensor, UnaryChain};
use thex_circuit::instruction::MAX_EXTENSION;
use thiserror::Error;

use crate::graph::{Facts, Graph, Node, NodeId, Op, Stage};
use crate::he::{Address, Domain, HeLinear, HeOp, LookUp, Purpose};
use crate::print::{ConstantPool, ContentHash, Pooled, VERSION, is_plain_char, reduction};

/// Where and why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What was wrong.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Parses a graph; arrays that the text names by hash come from `pool`. Facts are not part of the text.
///
/// # Errors
/// The first [`ParseError`]. A graph that parses may still break the verifier's invariants.
pub fn parse(text: &str, pool: &ConstantPool) -> Result<Graph> {
    let statements: Vec<Cursor<'_>> = text
        .lines()
        .enumerate()
        .map(|(i, line)| Cursor { line: i + 1, text: line, at: 0 })
        .filter(|cursor| !cursor.clone().at_end())
        .collect();
    let end = Cursor { line: text.lines().count() + 1, text: "", at: 0 };
    let mut lines = statements.into_iter();
    let header = Header::parse(&mut lines, &end)?;
    let definitions = lines.map(|mut line| Definition::parse(&mut line, pool)).collect::<Result<Vec<_>>>()?;
    assemble(header, definitions)
}

/// A name where it is used.
struct Use<'a> {
    name: String,
    place: Cursor<'a>,
}

struct Header<'a> {
    stage: Stage,
    inputs: Vec<Use<'a>>,
    outputs: Vec<(String, Use<'a>)>,
}

impl<'a> Header<'a> {
    fn parse(lines: &mut impl Iterator<Item = Cursor<'a>>, end: &Cursor<'a>) -> Result<Self> {
        let mut next = |keyword: &str| {
            let mut line = lines.next().unwrap_or_else(|| end.clone());
            line.keyword(keyword).map(|()| line)
        };
        let mut line = next("thex-ir")?;
        let place = line.clone();
        if line.integer::<u32>()? != VERSION {
            return place.fail(format!("this is not version {VERSION} of the text form"));
        }
        line.finish()?;
        let mut line = next("stage")?;
        let place = line.clone();
        let Some(stage) = Stage::parse(line.word()?) else { return place.fail("no such stage") };
        line.finish()?;
        let mut line = next("inputs")?;
        let inputs = line.separated(Cursor::reference)?;
        line.finish()?;
        let mut line = next("outputs")?;
        let outputs = line.separated(|line| Ok((line.string()?, line.reference()?)))?;
        line.finish()?;
        Ok(Self { stage, inputs, outputs })
    }
}

struct Definition<'a> {
    place: Cursor<'a>,
    node: Node,
    operands: Vec<Use<'a>>,
}

impl<'a> Definition<'a> {
    fn parse(line: &mut Cursor<'a>, pool: &ConstantPool) -> Result<Self> {
        let place = line.clone();
        let name = line.reference()?.name;
        line.expect(':')?;
        let shape = line.dims()?;
        line.expect('=')?;
        let mnemonic_place = line.clone();
        let mnemonic = line.word()?;
        line.expect('(')?;
        let operands = line.separated(Cursor::reference)?;
        line.expect(')')?;
        let mut attributes = Attributes::parse(line, pool)?;
        let Some(op) = operation(mnemonic, &mut attributes, &shape)? else {
            return mnemonic_place.fail(format!("no such operation: `{mnemonic}`"));
        };
        attributes.finish()?;
        let origin = if line.eat('@') { line.separated(Cursor::string)? } else { Vec::new() };
        line.finish()?;
        let node = Node { name, op, shape, origin, facts: Facts::default() };
        Ok(Self { place, node, operands })
    }
}

fn assemble(header: Header<'_>, definitions: Vec<Definition<'_>>) -> Result<Graph> {
    let mut graph = Graph::new();
    graph.stage = header.stage;
    let mut ids: BTreeMap<String, NodeId> = BTreeMap::new();
    let mut pending = Vec::with_capacity(definitions.len());
    for definition in definitions {
        let name = definition.node.name.clone();
        if ids.contains_key(&name) {
            return definition.place.fail(format!("`{name}` is defined twice"));
        }
        let id = graph.add(definition.node, &[]);
        ids.insert(name, id);
        pending.push((id, definition.operands));
    }
    let find = |used: &Use<'_>| match ids.get(&used.name) {
        Some(id) => Ok(*id),
        None => used.place.fail(format!("`{}` is not defined", used.name)),
    };
    for (id, operands) in pending {
        let operands = operands.iter().map(find).collect::<Result<Vec<_>>>()?;
        graph.set_operands(id, &operands);
    }
    graph.inputs = header.inputs.iter().map(find).collect::<Result<_>>()?;
    let outputs = header.outputs.into_iter().map(|(name, used)| Ok((name, find(&used)?)));
    graph.outputs = outputs.collect::<Result<_>>()?;
    Ok(graph)
}

/// The operation of this name, or none.
fn operation(mnemonic: &str, a: &mut Attributes<'_, '_>, shape: &[usize]) -> Result<Option<Op>> {
    Ok(Some(match mnemonic {
        "input" => Op::Input,
        "constant" => Op::Constant(a.tensor(shape)?),
        _ => match (clear_op(mnemonic, a)?, he_op(mnemonic, a)?) {
            (Some(op), _) => Op::Clear(op),
            (None, Some(op)) => Op::He(op),
            (None, None) => return Ok(None),
        },
    }))
}

fn clear_op(mnemonic: &str, a: &mut Attributes<'_, '_>) -> Result<Option<ClearOp>> {
    Ok(Some(match mnemonic {
        "linear" => ClearOp::Linear,
        "matmul" => ClearOp::MatMul,
        "add" => ClearOp::Add,
        "mul" => ClearOp::Mul,
        "unary" => ClearOp::Unary { chain: a.chain()? },
        "softmax" => ClearOp::Softmax { axis: a.size("axis")? },
        "layer-norm" => ClearOp::LayerNorm { epsilon: a.get("epsilon", Cursor::real)? },
        "rms-norm" => ClearOp::RmsNorm { epsilon: a.get("epsilon", Cursor::real)? },
        "reduce" => ClearOp::Reduce { reduction: a.get("reduction", Cursor::reduction)?, axis: a.size("axis")? },
        "reshape" => ClearOp::Reshape { shape: a.get("shape", Cursor::dims)? },
        "transpose" => ClearOp::Transpose { permutation: a.get("permutation", Cursor::dims)? },
        "slice" => ClearOp::Slice { axis: a.size("axis")?, start: a.size("start")?, end: a.size("end")? },
        "concat" => ClearOp::Concat { axis: a.size("axis")? },
        "broadcast" => ClearOp::Broadcast { shape: a.get("shape", Cursor::dims)? },
        "gather" => ClearOp::Gather { axis: a.size("axis")? },
        _ => return Ok(None),
    }))
}

fn he_op(mnemonic: &str, a: &mut Attributes<'_, '_>) -> Result<Option<HeOp>> {
    Ok(Some(match mnemonic {
        "encrypt" => HeOp::Encrypt,
        "he-linear" => {
            let purpose = a.get("purpose", Cursor::purpose)?;
            let map = HeLinear {
                outputs: a.size("outputs")?,
                operands: a.size("operands")?,
                gather: unshared(a.addresses("gather")?),
                set: unshared(a.indices("set")?),
                weights: unshared(a.reals("weights")?),
                bias: unshared(a.reals("bias")?),
            };
            HeOp::Linear { map: Arc::new(map), purpose }
        }
        "keyswitch" => {
            let gather = a.addresses("gather")?;
            let positions = a.size("positions")?;
            let extension = if a.values.contains_key("extension") { a.get("extension", Cursor::extension)? } else { 0 };
            HeOp::Keyswitch { gather, domain: Domain { positions, extension } }
        }
        "pbs" => {
            let chain = a.chain()?;
            let slope = if a.values.contains_key("slope") { a.get("slope", Cursor::real)? } else { 0.0 };
            HeOp::Pbs { function: LookUp { chain, slope } }
        }
        "pack" => HeOp::Pack { gather: a.addresses("gather")?, slots: a.size("slots")? },
        "lut-product" => HeOp::LutProduct {
            chain: a.chain()?,
            argument: a.indices("argument")?,
            accumulator: a.indices("accumulator")?,
            slots: a.size("slots")?,
            sums: if a.values.contains_key("sums") { Some(a.indices("sums")?) } else { None },
        },
        "decrypt" => HeOp::Decrypt { gather: a.addresses("gather")? },
        _ => return Ok(None),
    }))
}

fn unshared<T: Clone>(array: Arc<Vec<T>>) -> Vec<T> {
    Arc::unwrap_or_clone(array)
}

/// `{key: value, …}`: where each value starts. Values are parsed when the operation asks for them by type.
struct Attributes<'a, 'p> {
    place: Cursor<'a>,
    values: BTreeMap<&'a str, Cursor<'a>>,
    pool: &'p ConstantPool,
}

impl<'a, 'p> Attributes<'a, 'p> {
    fn parse(line: &mut Cursor<'a>, pool: &'p ConstantPool) -> Result<Self> {
        let mut values = BTreeMap::new();
        let place = line.clone();
        if line.eat('{') {
            loop {
                let key_place = line.clone();
                let key = line.word()?;
                line.expect(':')?;
                if values.insert(key, line.clone()).is_some() {
                    return key_place.fail(format!("`{key}` is given twice"));
                }
                line.skip_value()?;
                if !line.eat(',') {
                    break;
                }
            }
            line.expect('}')?;
        }
        Ok(Self { place, values, pool })
    }

    fn get<T>(&mut self, key: &str, parse: impl Fn(&mut Cursor<'a>) -> Result<T>) -> Result<T> {
        let Some(mut value) = self.values.remove(key) else {
            return self.place.fail(format!("the operation needs `{key}`"));
        };
        let parsed = parse(&mut value)?;
        // What the value's own grammar left over is not part of any value.
        if value.eat(',') || value.eat('}') {
            Ok(parsed)
        } else {
            value.fail(format!("`{key}` has more than one value"))
        }
    }

    fn finish(&self) -> Result<()> {
        match self.values.iter().next() {
            Some((key, place)) => place.fail(format!("the operation has no `{key}`")),
            None => Ok(()),
        }
    }

    fn size(&mut self, key: &str) -> Result<usize> {
        self.get(key, Cursor::integer)
    }

    fn chain(&mut self) -> Result<UnaryChain> {
        self.get("chain", |value| {
            let place = value.clone();
            match UnaryChain::parse(&value.string()?) {
                Some(chain) => Ok(chain),
                None => place.fail("not a chain of functions"),
            }
        })
    }

    /// An array, inline or by hash.
    fn array<T>(
        &mut self,
        key: &str,
        item: fn(&mut Cursor<'a>) -> Result<T>,
        pooled: fn(&Pooled) -> Option<Arc<Vec<T>>>,
    ) -> Result<Arc<Vec<T>>> {
        let pool = self.pool;
        self.get(key, |value| match value.pooled(pool)? {
            None => value.list(item).map(Arc::new),
            Some(array) => pooled(array).map_or_else(|| value.fail("the array of this hash has another type"), Ok),
        })
    }

    fn reals(&mut self, key: &str) -> Result<Arc<Vec<f64>>> {
        self.array(key, Cursor::real, |p| if let Pooled::Reals(x) = p { Some(x.clone()) } else { None })
    }

    fn indices(&mut self, key: &str) -> Result<Arc<Vec<u32>>> {
        self.array(key, Cursor::integer, |p| if let Pooled::Indices(x) = p { Some(x.clone()) } else { None })
    }

    fn addresses(&mut self, key: &str) -> Result<Arc<Vec<Address>>> {
        self.array(key, Cursor::address, |p| if let Pooled::Addresses(x) = p { Some(x.clone()) } else { None })
    }

    /// A constant; its shape is the node's unless it says otherwise.
    fn tensor(&mut self, node: &[usize]) -> Result<Arc<Tensor>> {
        let shape = if self.values.contains_key("shape") { self.get("shape", Cursor::dims)? } else { node.to_vec() };
        let pool = self.pool;
        self.get("value", |value| {
            let place = value.clone();
            match value.pooled(pool)? {
                Some(Pooled::Tensor(tensor)) if tensor.shape() == shape => Ok(tensor.clone()),
                Some(_) => place.fail("the array of this hash has another shape or type"),
                None => {
                    let values = value.list(Cursor::real)?;
                    let tensor = ArrayD::from_shape_vec(IxDyn(&shape), values);
                    tensor.map(Arc::new).or_else(|_| place.fail(format!("the values do not fill shape {shape:?}")))
                }
            }
        })
    }
}

/// A place in a line. Every method skips blanks first.
#[derive(Clone)]
struct Cursor<'a> {
    line: usize,
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        let column = self.text.get(..self.at).map_or(0, |before| before.chars().count()) + 1;
        Err(ParseError { line: self.line, column, message: message.into() })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn peek(&mut self) -> Option<char> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.rest().chars().next()
    }

    fn at_end(&mut self) -> bool {
        matches!(self.peek(), None | Some(';'))
    }

    fn finish(&mut self) -> Result<()> {
        if self.at_end() { Ok(()) } else { self.fail("expected the end of the line") }
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<()> {
        if self.eat(wanted) { Ok(()) } else { self.fail(format!("expected `{wanted}`")) }
    }

    /// A run of the characters of plain names.
    fn word(&mut self) -> Result<&'a str> {
        self.peek();
        let rest = self.rest();
        let word = &rest[..rest.find(|c| !is_plain_char(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            return self.fail("expected a word");
        }
        self.at += word.len();
        Ok(word)
    }

    fn keyword(&mut self, wanted: &str) -> Result<()> {
        let place = self.clone();
        if self.word().is_ok_and(|word| word == wanted) { Ok(()) } else { place.fail(format!("expected `{wanted}`")) }
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T> {
        let place = self.clone();
        self.word()?.parse().or_else(|_| place.fail(format!("expected {what}")))
    }

    fn integer<T: std::str::FromStr>(&mut self) -> Result<T> {
        self.number("a whole number")
    }

    fn real(&mut self) -> Result<f64> {
        self.number("a number")
    }

    fn reduction(&mut self) -> Result<Reduction> {
        let place = self.clone();
        let word = self.word()?;
        let found = [Reduction::Sum, Reduction::Mean, Reduction::Max].into_iter().find(|r| reduction(*r) == word);
        found.map_or_else(|| place.fail("expected sum, mean or max"), Ok)
    }

    fn extension(&mut self) -> Result<u32> {
        let place = self.clone();
        let extension = self.integer()?;
        if extension > MAX_EXTENSION { place.fail("the largest extension is 3") } else { Ok(extension) }
    }

    fn purpose(&mut self) -> Result<Purpose> {
        let place = self.clone();
        match self.word()? {
            "packed" => Ok(Purpose::Packed),
            "output" => Ok(Purpose::Output),
            "argument" => {
                self.expect('(')?;
                let positions = self.integer()?;
                let extension = if self.eat(',') { self.extension()? } else { 0 };
                self.expect(')')?;
                Ok(Purpose::Argument { domain: Domain { positions, extension } })
            }
            _ => place.fail("expected argument(…), packed or output"),
        }
    }

    fn address(&mut self) -> Result<Address> {
        let place = self.clone();
        let word = self.word()?;
        if word == "_" {
            return Ok(Address::ABSENT);
        }
        let port = word.parse().or_else(|_| place.fail("expected an address"))?;
        self.expect(':')?;
        Ok(Address { port, index: self.integer()? })
    }

    fn reference(&mut self) -> Result<Use<'a>> {
        self.expect('%')?;
        let place = self.clone();
        let name = if self.peek() == Some('"') { self.string()? } else { self.word()?.to_owned() };
        Ok(Use { name, place })
    }

    /// A quoted text with the escapes of `str::escape_debug`.
    fn string(&mut self) -> Result<String> {
        self.expect('"')?;
        let mut text = String::new();
        while let Some(c) = self.take() {
            match c {
                '"' => return Ok(text),
                '\\' => text.push(self.escape()?),
                c => text.push(c),
            }
        }
        self.fail("expected `\"`")
    }

    /// The next character, blank or not.
    fn take(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn escape(&mut self) -> Result<char> {
        match self.take() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('0') => Ok('\0'),
            Some(c @ ('"' | '\'' | '\\')) => Ok(c),
            Some('u') => {
                self.expect('{')?;
                let place = self.clone();
                let code = u32::from_str_radix(self.word()?, 16).ok().and_then(char::from_u32);
                self.expect('}')?;
                code.map_or_else(|| place.fail("not a character"), Ok)
            }
            _ => self.fail("no such escape"),
        }
    }

    /// Items between commas; none before a closing bracket or the end of the line.
    fn separated<T>(&mut self, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        if self.at_end() || matches!(self.peek(), Some(')' | ']')) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if !self.eat(',') {
                return Ok(items);
            }
        }
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect('[')?;
        let items = self.separated(item)?;
        self.expect(']')?;
        Ok(items)
    }

    /// A shape or permutation. A shape whose elements cannot be counted is no shape.
    fn dims(&mut self) -> Result<Vec<usize>> {
        let place = self.clone();
        let dims: Vec<usize> = self.list(Self::integer)?;
        let count = dims.iter().filter(|d| **d > 0).try_fold(1_usize, |n, d| n.checked_mul(*d));
        match count {
            Some(count) if isize::try_from(count).is_ok() => Ok(dims),
            _ => place.fail("the shape has too many elements"),
        }
    }

    /// The array behind `#hash`, if there is a `#`.
    fn pooled<'p>(&mut self, pool: &'p ConstantPool) -> Result<Option<&'p Pooled>> {
        if !self.eat('#') {
            return Ok(None);
        }
        let place = self.clone();
        let hash = u64::from_str_radix(self.word()?, 16).or_else(|_| place.fail("expected a hash"))?;
        match pool.get(ContentHash(hash)) {
            Some(array) => Ok(Some(array)),
            None => place.fail(format!("#{hash:016x} is not in the pool of constants")),
        }
    }

    /// Moves past one attribute's value: up to a comma or brace that no bracket or quote encloses.
    fn skip_value(&mut self) -> Result<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None | Some(';') => return self.fail("expected `}`"),
                Some('"') => {
                    self.string()?;
                    continue;
                }
                Some(',' | '}') if depth == 0 => return Ok(()),
                Some('[' | '(') => depth += 1,
                Some(']' | ')') => depth = depth.saturating_sub(1),
                Some(_) => {}
            }
            self.take();
        }
    }
}
