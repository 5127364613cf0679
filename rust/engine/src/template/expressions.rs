//! Expressions of a template, parsed as Jinja parses them.

use super::ast::{CallExpr, Expr, Post};
use super::lexer::Token;
use super::parser::Parser;
use super::value::{Res, Val, fail};

const COMPARISONS: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];
/// Most `a if b` in one row without an else.
const MAX_CONDITIONS: usize = 50;

impl Parser {
    pub fn expression(&mut self) -> Res<Expr> {
        self.nested(|p| {
            let mut value = p.or()?;
            let mut conditions = 0;
            while p.skip_name("if") {
                let test = p.or()?;
                let otherwise = if p.skip_name("else") { Some(p.expression()?) } else { None };
                value = Expr::Cond(Box::new((value, test, otherwise)));
                conditions += 1;
                if conditions > MAX_CONDITIONS {
                    return fail("too many conditions in a row");
                }
            }
            Ok(value)
        })
    }

    /// Expressions with commas between are a tuple. `conditions`: whether `a if b` may stand there.
    pub fn tuple(&mut self, conditions: bool, ends: &[&str]) -> Res<Expr> {
        match self.tuple_parts(conditions, ends)? {
            (parts, false) if parts.is_empty() => {
                fail(format!("Expected an expression, got {}", self.described()))
            }
            (mut parts, false) => Ok(parts.remove(0)),
            (parts, true) => Ok(Expr::Tuple(parts)),
        }
    }

    fn tuple_parts(&mut self, conditions: bool, ends: &[&str]) -> Res<(Vec<Expr>, bool)> {
        let (mut parts, mut is_tuple) = (Vec::new(), false);
        loop {
            let closed = matches!(self.peek(), Token::PrintEnd | Token::BlockEnd | Token::Eof);
            if closed || self.is_op(")") || ends.iter().any(|e| self.is_name(e)) {
                break;
            }
            parts.push(if conditions { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        Ok((parts, is_tuple))
    }

    fn or(&mut self) -> Res<Expr> {
        let mut parts = vec![self.and()?];
        while self.skip_name("or") {
            parts.push(self.and()?);
        }
        Ok(single(parts, Expr::Or))
    }

    fn and(&mut self) -> Res<Expr> {
        let mut parts = vec![self.not()?];
        while self.skip_name("and") {
            parts.push(self.not()?);
        }
        Ok(single(parts, Expr::And))
    }

    fn not(&mut self) -> Res<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let found = COMPARISONS.iter().find(|op| self.is_op(op));
            let op = if let Some(op) = found {
                self.at += 1;
                *op
            } else if self.skip_name("in") {
                "in"
            } else if self.is_name("not") && self.after_is_name("in") {
                self.at += 2;
                "not in"
            } else {
                break;
            };
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn chain_of(&mut self, operators: &[&'static str], operand: fn(&mut Self) -> Res<Expr>) -> Res<Expr> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(op) = operators.iter().find(|op| self.is_op(op)) {
            self.at += 1;
            rest.push((*op, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Math(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Res<Expr> {
        self.chain_of(&["+", "-"], Self::concat)
    }

    fn concat(&mut self) -> Res<Expr> {
        let mut parts = vec![self.product()?];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(single(parts, Expr::Concat))
    }

    fn product(&mut self) -> Res<Expr> {
        self.chain_of(&["*", "/", "//", "%"], Self::power)
    }

    fn power(&mut self) -> Res<Expr> {
        self.chain_of(&["**"], Self::unary)
    }

    fn unary(&mut self) -> Res<Expr> {
        self.signed(true)
    }

    fn signed(&mut self, filters: bool) -> Res<Expr> {
        let value = if self.skip_op("-") {
            Expr::Negative(Box::new(self.nested(|p| p.signed(false))?))
        } else if self.skip_op("+") {
            Expr::Positive(Box::new(self.nested(|p| p.signed(false))?))
        } else {
            self.primary()?
        };
        let mut posts = Vec::new();
        self.postfix(&mut posts)?;
        loop {
            if !filters {
                break;
            }
            if self.skip_op("|") {
                posts.push(self.filter()?);
            } else if self.is_name("is") {
                let test = self.test()?;
                posts.push(test);
            } else if self.is_op("(") {
                posts.push(Post::Call(self.call_arguments()?));
            } else {
                break;
            }
        }
        Ok(if posts.is_empty() { value } else { Expr::Chain(Box::new(value), posts) })
    }

    fn primary(&mut self) -> Res<Expr> {
        let described = self.described();
        Ok(match self.next() {
            Token::Name(name) => match &*name {
                "true" | "True" => Self::constant(Val::Bool(true)),
                "false" | "False" => Self::constant(Val::Bool(false)),
                "none" | "None" => Self::constant(Val::None),
                n if n.starts_with(|c: char| c.is_numeric()) => return fail(format!("unexpected '{n}'")),
                _ => {
                    self.reads(&name);
                    Expr::Name(name)
                }
            },
            Token::Text(mut text) => {
                while let Token::Text(more) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Self::constant(Val::str(text))
            }
            Token::Number(value) => Self::constant(value),
            Token::Op("(") => {
                let inner = self.nested(|p| p.tuple_parts(true, &[]))?;
                self.expect_op(")")?;
                match inner {
                    (mut parts, false) if parts.len() == 1 => parts.remove(0),
                    (parts, _) => Expr::Tuple(parts),
                }
            }
            Token::Op("[") => {
                let mut items = Vec::new();
                while !self.is_op("]") {
                    items.push(self.expression()?);
                    if !self.is_op("]") {
                        self.expect_op(",")?;
                    }
                }
                self.at += 1;
                Expr::List(items)
            }
            Token::Op("{") => {
                let mut pairs = Vec::new();
                while !self.is_op("}") {
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    pairs.push((key, self.expression()?));
                    if !self.is_op("}") {
                        self.expect_op(",")?;
                    }
                }
                self.at += 1;
                Expr::Dict(pairs)
            }
            _ => {
                self.at -= 1;
                return fail(format!("unexpected {described}"));
            }
        })
    }

    fn postfix(&mut self, posts: &mut Vec<Post>) -> Res<()> {
        loop {
            if self.skip_op(".") {
                match self.next() {
                    Token::Name(name) => posts.push(Post::Attr(name)),
                    Token::Number(n @ (Val::Int(_) | Val::Big(_))) => {
                        posts.push(Post::Item(Self::constant(n)));
                    }
                    _ => return fail("expected name or number"),
                }
            } else if self.skip_op("[") {
                let mut parts = Vec::new();
                while !self.is_op("]") {
                    if !parts.is_empty() {
                        self.expect_op(",")?;
                    }
                    parts.push(self.subscript()?);
                }
                self.at += 1;
                posts.push(Post::Item(match parts.len() {
                    1 => parts.remove(0),
                    _ => Expr::Tuple(parts),
                }));
            } else if self.is_op("(") {
                posts.push(Post::Call(self.call_arguments()?));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Res<Expr> {
        let start = if self.is_op(":") { None } else { Some(self.expression()?) };
        if !self.skip_op(":") {
            return start.map_or_else(|| fail("expected a subscript"), Ok);
        }
        let ended = |p: &Self| p.is_op(":") || p.is_op("]") || p.is_op(",");
        let stop = if ended(self) { None } else { Some(self.expression()?) };
        let step = if self.skip_op(":") && !ended(self) { Some(self.expression()?) } else { None };
        Ok(Expr::Slice(Box::new([start, stop, step])))
    }

    fn test(&mut self) -> Res<Post> {
        self.at += 1;
        let negated = self.skip_name("not");
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        let ended = ["else", "or", "and"].iter().any(|n| self.is_name(n));
        let mut call = CallExpr::default();
        if self.is_op("(") {
            call = self.call_arguments()?;
        } else if !ended
            && (matches!(self.peek(), Token::Name(_) | Token::Text(_) | Token::Number(_))
                || self.is_op("[")
                || self.is_op("{"))
        {
            if self.is_name("is") {
                return fail("You cannot chain multiple tests with is");
            }
            let argument = self.nested(|p| {
                let value = p.primary()?;
                let mut posts = Vec::new();
                p.postfix(&mut posts)?;
                Ok(if posts.is_empty() { value } else { Expr::Chain(Box::new(value), posts) })
            })?;
            call.args.push(argument);
        }
        Ok(Post::Test(name.into(), call, negated))
    }

    pub fn call_arguments(&mut self) -> Res<CallExpr> {
        let mut call = CallExpr::default();
        let invalid = || fail("invalid syntax for function call expression");
        self.expect_op("(")?;
        while !self.is_op(")") {
            if self.skip_op("*") {
                if call.star.is_some() || call.double_star.is_some() {
                    return invalid();
                }
                call.star = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                if call.double_star.is_some() {
                    return invalid();
                }
                call.double_star = Some(Box::new(self.expression()?));
            } else if matches!(self.peek(), Token::Name(_)) && self.after_is_op("=") {
                if call.double_star.is_some() {
                    return invalid();
                }
                let name = self.expect_name()?;
                self.at += 1;
                call.named.push((name, self.expression()?));
            } else {
                if call.star.is_some() || call.double_star.is_some() || !call.named.is_empty() {
                    return invalid();
                }
                call.args.push(self.expression()?);
            }
            if !self.is_op(")") {
                self.expect_op(",")?;
            }
        }
        self.at += 1;
        Ok(call)
    }
}

fn single(mut parts: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    if parts.len() == 1 { parts.remove(0) } else { many(parts) }
}
