//! The tree of a parsed template.

use std::sync::Arc;

use super::value::Val;

pub enum Expr {
    Const(Val),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    /// Operators of one level, from left to right. The tree is flat, for long chains.
    Math(Box<Expr>, Vec<(&'static str, Expr)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(&'static str, Expr)>),
    /// value, test, otherwise
    Cond(Box<(Expr, Expr, Option<Expr>)>),
    /// start, stop, step of a subscript
    Slice(Box<[Option<Expr>; 3]>),
    /// What follows a value, from left to right.
    Chain(Box<Expr>, Vec<Post>),
}

pub enum Post {
    Attr(Arc<str>),
    Item(Expr),
    Call(CallExpr),
    Filter(Arc<str>, CallExpr),
    /// name, arguments, negated
    Test(Arc<str>, CallExpr, bool),
}

#[derive(Default)]
pub struct CallExpr {
    pub args: Vec<Expr>,
    pub named: Vec<(Arc<str>, Expr)>,
    pub star: Option<Box<Expr>>,
    pub double_star: Option<Box<Expr>>,
}

pub enum Assigned {
    Name(Arc<str>),
    /// A field of a namespace.
    Field(Arc<str>, Arc<str>),
    Tuple(Vec<Assigned>),
}

pub struct MacroDecl {
    pub name: Arc<str>,
    pub params: Vec<Arc<str>>,
    /// Of the last parameters.
    pub defaults: Vec<Expr>,
    pub body: Vec<Stmt>,
    pub uses_caller: bool,
    pub uses_kwargs: bool,
    pub uses_varargs: bool,
}

pub struct ForLoop {
    pub target: Assigned,
    pub iter: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

pub enum Stmt {
    Text(Arc<str>),
    Print(Expr),
    For(Arc<ForLoop>),
    /// Branches with their tests, and what is left.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    Set(Assigned, Expr),
    SetBlock(Assigned, Vec<Post>, Vec<Stmt>),
    With(Vec<(Assigned, Expr)>, Vec<Stmt>),
    Macro(Arc<MacroDecl>),
    CallBlock(Arc<MacroDecl>, Expr),
    FilterBlock(Vec<Post>, Vec<Stmt>),
    /// A scope of its own: `{% generation %}`, `{% autoescape %}`.
    Scope(Option<Expr>, Vec<Stmt>),
    /// name, scoped, body
    Block(Arc<str>, bool, Arc<Vec<Stmt>>),
    Break,
    Continue,
    /// A tag that needs other templates.
    Loads(&'static str),
}
