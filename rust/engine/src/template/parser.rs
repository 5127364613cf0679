//! Statements of a template, parsed as Jinja parses them.

use std::collections::HashSet;
use std::sync::Arc;

use super::ast::{CallExpr, Expr, ForLoop, Post, Stmt};
use super::lexer::{Token, line_of, normalized, tokens};
use super::value::{JinjaError, Res, Val, fail};

/// Deepest nesting of brackets, tags and operators.
const MAX_NESTING: usize = 100;

pub struct Parser {
    pub tokens: Vec<(Token, usize)>,
    pub at: usize,
    depth: usize,
    pub loops: usize,
    /// Names that each open macro reads.
    pub read: Vec<HashSet<Arc<str>>>,
    blocks: HashSet<Arc<str>>,
}

/// Parses a template.
///
/// # Errors
/// The line and what is wrong there.
pub fn parse(source: &str) -> Res<Vec<Stmt>> {
    let source = normalized(source);
    let mut parser = Parser {
        tokens: tokens(&source)?,
        at: 0,
        depth: 0,
        loops: 0,
        read: Vec::new(),
        blocks: HashSet::new(),
    };
    let parsed = parser.statements_until(&[]);
    parsed.map_err(|e| {
        let at = parser.tokens.get(parser.at).map_or(source.len(), |t| t.1);
        JinjaError(format!("line {}: {}", line_of(&source, at), e.0))
    })
}

impl Parser {
    pub fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn peek_after(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    pub fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(o) if *o == op)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(n) if &**n == name)
    }

    pub fn after_is_name(&self, name: &str) -> bool {
        matches!(self.peek_after(), Token::Name(n) if &**n == name)
    }

    pub fn after_is_op(&self, op: &str) -> bool {
        matches!(self.peek_after(), Token::Op(o) if *o == op)
    }

    pub fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub fn expect_op(&mut self, op: &str) -> Res<()> {
        if self.skip_op(op) { Ok(()) } else { fail(format!("expected {op:?}, got {}", self.described())) }
    }

    pub fn expect_name(&mut self) -> Res<Arc<str>> {
        match self.peek().clone() {
            Token::Name(name) if !name.starts_with(|c: char| c.is_numeric()) => {
                self.at += 1;
                Ok(name)
            }
            _ => fail(format!("expected a name, got {}", self.described())),
        }
    }

    pub fn described(&self) -> String {
        match self.peek() {
            Token::Data(_) => "text".into(),
            Token::PrintBegin => "'{{'".into(),
            Token::PrintEnd => "'}}'".into(),
            Token::BlockBegin => "'{%'".into(),
            Token::BlockEnd => "'%}'".into(),
            Token::Name(name) => format!("'{name}'"),
            Token::Text(_) => "a string".into(),
            Token::Number(_) => "a number".into(),
            Token::Op(op) => format!("'{op}'"),
            Token::Eof => "the end of the template".into(),
        }
    }

    /// Runs `parse` one level deeper.
    pub fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        if self.depth >= MAX_NESTING {
            return fail(format!("nested deeper than {MAX_NESTING} levels"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Notes that a name is read.
    pub fn reads(&mut self, name: &Arc<str>) {
        if matches!(&**name, "caller" | "kwargs" | "varargs") {
            self.read.iter_mut().for_each(|names| {
                names.insert(name.clone());
            });
        }
    }

    fn block_end(&mut self) -> Res<()> {
        match self.peek() {
            Token::BlockEnd => {
                self.at += 1;
                Ok(())
            }
            _ => fail(format!("expected '%}}', got {}", self.described())),
        }
    }

    /// Statements up to a tag of these names, whose name is the next token then; without names up to the end.
    fn statements_until(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        self.nested(|p| {
            let mut body = Vec::new();
            loop {
                match p.next() {
                    Token::Data(text) => body.push(Stmt::Text(text)),
                    Token::PrintBegin => {
                        body.push(Stmt::Print(p.tuple(true, &[])?));
                        match p.peek() {
                            Token::PrintEnd => p.at += 1,
                            _ => return fail(format!("expected '}}}}', got {}", p.described())),
                        }
                    }
                    Token::BlockBegin => {
                        if ends.iter().any(|end| p.is_name(end)) {
                            return Ok(body);
                        }
                        p.statement(&mut body)?;
                        p.block_end()?;
                    }
                    Token::Eof if ends.is_empty() => return Ok(body),
                    _ => {
                        p.at -= 1;
                        return fail(format!("expected a tag {}, got {}", ends.join(" or "), p.described()));
                    }
                }
            }
        })
    }

    /// The body of a tag: what follows its end, up to a tag of these names, which is taken.
    pub fn body(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        let body = self.body_before(ends)?;
        self.at += 1;
        Ok(body)
    }

    fn body_before(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        self.skip_op(":");
        self.block_end()?;
        self.statements_until(ends)
    }

    fn statement(&mut self, body: &mut Vec<Stmt>) -> Res<()> {
        let name = match self.peek() {
            Token::Name(name) => name.clone(),
            _ => return fail(format!("tag name expected, got {}", self.described())),
        };
        self.at += 1;
        body.push(match &*name {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                Stmt::Macro(Arc::new(self.macro_decl(name, true, None)?))
            }
            "call" => self.call_block()?,
            "filter" => {
                let filters = self.filter_chain()?;
                Stmt::FilterBlock(filters, self.body(&["endfilter"])?)
            }
            "block" => self.block()?,
            "generation" => Stmt::Scope(None, self.body(&["endgeneration"])?),
            "autoescape" => {
                let on = self.expression()?;
                Stmt::Scope(Some(on), self.body(&["endautoescape"])?)
            }
            "print" => {
                let mut first = true;
                while !matches!(self.peek(), Token::BlockEnd) {
                    if !std::mem::take(&mut first) {
                        self.expect_op(",")?;
                    }
                    body.push(Stmt::Print(self.expression()?));
                }
                return Ok(());
            }
            "break" if self.loops > 0 => Stmt::Break,
            "continue" if self.loops > 0 => Stmt::Continue,
            "break" | "continue" => return fail(format!("'{name}' outside a loop")),
            "include" | "extends" | "import" | "from" => self.loads(&name)?,
            _ => {
                self.at -= 1;
                return fail(format!("Encountered unknown tag '{name}'."));
            }
        });
        Ok(())
    }

    /// A tag that loads another template, of which there is none: rendering it fails.
    fn loads(&mut self, name: &str) -> Res<Stmt> {
        self.expression()?;
        while !matches!(self.peek(), Token::BlockEnd | Token::Eof) {
            self.at += 1;
        }
        let known = ["include", "extends", "import", "from"];
        Ok(Stmt::Loads(known.into_iter().find(|k| *k == name).unwrap_or("include")))
    }

    fn for_loop(&mut self) -> Res<Stmt> {
        let target = self.target(false, &["in"])?;
        if !self.skip_name("in") {
            return fail(format!("expected 'in', got {}", self.described()));
        }
        let iter = self.tuple(false, &["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let body = self.body_before(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let otherwise = if self.skip_name("else") {
            self.body(&["endfor"])?
        } else {
            self.at += 1;
            Vec::new()
        };
        Ok(Stmt::For(Arc::new(ForLoop { target, iter, test, recursive, body, otherwise })))
    }

    fn condition(&mut self) -> Res<Stmt> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            branches.push((test, self.body_before(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            let mut otherwise = Vec::new();
            if self.skip_name("else") {
                otherwise = self.body(&["endif"])?;
            } else {
                self.at += 1;
            }
            return Ok(Stmt::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Res<Stmt> {
        let target = self.target(true, &[])?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true, &[])?));
        }
        let filters = if self.skip_op("|") { self.filter_chain()? } else { Vec::new() };
        Ok(Stmt::SetBlock(target, filters, self.body(&["endset"])?))
    }

    fn with(&mut self) -> Res<Stmt> {
        let mut values = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd | Token::Eof) {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Stmt::With(values, self.body(&["endwith"])?))
    }

    fn block(&mut self) -> Res<Stmt> {
        let name = self.expect_name()?;
        let scoped = self.skip_name("scoped");
        self.skip_name("required");
        if !self.blocks.insert(name.clone()) {
            return fail(format!("block '{name}' defined twice"));
        }
        let loops = std::mem::take(&mut self.loops);
        let body = self.body(&["endblock"]);
        self.loops = loops;
        let body = body?;
        self.skip_name(&name);
        Ok(Stmt::Block(name, scoped, Arc::new(body)))
    }

    fn call_block(&mut self) -> Res<Stmt> {
        let signature = if self.is_op("(") { Some(self.signature()?) } else { None };
        let call = self.expression()?;
        if !matches!(&call, Expr::Chain(_, posts) if matches!(posts.last(), Some(Post::Call(_)))) {
            return fail("expected call");
        }
        let decl = self.macro_decl("caller".into(), false, Some(signature.unwrap_or_default()))?;
        Ok(Stmt::CallBlock(Arc::new(decl), call))
    }

    /// `name(arguments) | name ...`
    fn filter_chain(&mut self) -> Res<Vec<Post>> {
        let mut filters = Vec::new();
        loop {
            filters.push(self.filter()?);
            if !self.skip_op("|") {
                return Ok(filters);
            }
        }
    }

    pub fn filter(&mut self) -> Res<Post> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        let call = if self.is_op("(") { self.call_arguments()? } else { CallExpr::default() };
        Ok(Post::Filter(name.into(), call))
    }

    /// A constant.
    pub fn constant(value: Val) -> Expr {
        Expr::Const(value)
    }
}
