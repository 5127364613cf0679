//! The state of a rendering: scopes, objects and what is left of the steps.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::ast::{ForLoop, MacroDecl, Stmt};
use super::value::{Res, Val, fail};

/// Steps that a template may take: real ones need some thousands.
pub const FUEL: usize = 2_000_000;
/// Deepest nesting of what is run: macros that call each other, statements and expressions in each other.
const MAX_NESTING: usize = 400;

pub struct Interpreter<'t> {
    fuel: usize,
    pub nesting: usize,
    scopes: Vec<Scope>,
    /// The scope of the statement that runs.
    pub scope: usize,
    pub namespaces: Vec<IndexMap<Arc<str>, Val>>,
    pub loops: Vec<LoopState<'t>>,
    pub cyclers: Vec<(Vec<Val>, usize)>,
    pub joiners: Vec<(Val, bool)>,
    pub macros: Vec<MacroState<'t>>,
    pub blocks: HashMap<Arc<str>, &'t [Stmt]>,
    /// `{% autoescape true %}` is open.
    pub escape: bool,
    /// State of the random numbers; 0 before the first.
    pub random: u64,
}

struct Scope {
    names: HashMap<Arc<str>, Val>,
    parent: usize,
    /// A macro was made in it, which reads it later.
    kept: bool,
}

pub struct LoopState<'t> {
    pub items: Arc<Vec<Val>>,
    pub index: usize,
    pub depth: usize,
    pub changed: Option<Vec<Val>>,
    /// A recursive loop with the scope around it.
    pub recursive: Option<(&'t ForLoop, usize)>,
}

#[derive(Clone, Copy)]
pub struct MacroState<'t> {
    pub decl: &'t MacroDecl,
    /// The scope that it was made in.
    pub scope: usize,
}

/// What a statement asks of the loop around it.
#[derive(PartialEq, Eq)]
pub enum Flow {
    On,
    Break,
    Continue,
}

impl<'t> Interpreter<'t> {
    pub fn new(names: HashMap<Arc<str>, Val>) -> Self {
        Interpreter {
            fuel: FUEL,
            nesting: 0,
            scopes: vec![Scope { names, parent: usize::MAX, kept: true }],
            scope: 0,
            namespaces: Vec::new(),
            loops: Vec::new(),
            cyclers: Vec::new(),
            joiners: Vec::new(),
            macros: Vec::new(),
            blocks: HashMap::new(),
            escape: false,
            random: 0,
        }
    }

    /// Notes the blocks of a template, which `self.name()` writes.
    pub fn find_blocks(&mut self, body: &'t [Stmt]) {
        for statement in body {
            match statement {
                Stmt::Block(name, _, body) => {
                    self.blocks.insert(name.clone(), body);
                    self.find_blocks(body);
                }
                Stmt::For(decl) => {
                    self.find_blocks(&decl.body);
                    self.find_blocks(&decl.otherwise);
                }
                Stmt::If(branches, otherwise) => {
                    branches.iter().for_each(|(_, body)| self.find_blocks(body));
                    self.find_blocks(otherwise);
                }
                Stmt::With(_, body) | Stmt::Scope(_, body) => self.find_blocks(body),
                _ => {}
            }
        }
    }

    pub fn charge(&mut self, steps: usize) -> Res<()> {
        match self.fuel.checked_sub(steps) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => fail(format!("it took more than {FUEL} steps")),
        }
    }

    pub fn step(&mut self) -> Res<()> {
        self.charge(1)
    }

    /// Charges for a text of this length.
    pub fn charge_bytes(&mut self, bytes: usize) -> Res<()> {
        self.charge(bytes / 64)
    }

    /// The elements of a value.
    pub fn elements(&mut self, value: &Val) -> Res<Vec<Val>> {
        let size = match value {
            Val::Str(text, _) => text.len(),
            Val::Dict(_) | Val::View(..) => value.len().unwrap_or(0),
            value => value.len().unwrap_or(0) / 4,
        };
        self.charge(size)?;
        let all = value.elements()?;
        self.charge(all.len() / 4)?;
        Ok(all)
    }

    /// The value of a name that the template or the request gives.
    pub fn given(&self, name: &str) -> Option<&Val> {
        let mut at = self.scope;
        while let Some(scope) = self.scopes.get(at) {
            if let Some(value) = scope.names.get(name) {
                return Some(value);
            }
            at = scope.parent;
        }
        None
    }

    pub fn define(&mut self, name: Arc<str>, value: Val) {
        self.scopes[self.scope].names.insert(name, value);
    }

    /// Keeps the scopes that a macro reads later.
    pub fn keep_scopes(&mut self) {
        let mut at = self.scope;
        while let Some(scope) = self.scopes.get_mut(at).filter(|s| !s.kept) {
            scope.kept = true;
            at = scope.parent;
        }
    }

    /// Runs `work` in a new scope inside `parent`.
    pub fn in_scope<T>(&mut self, parent: usize, work: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        self.step()?;
        let outer = self.scope;
        self.scopes.push(Scope { names: HashMap::new(), parent, kept: false });
        self.scope = self.scopes.len() - 1;
        let done = work(self);
        if self.scope + 1 == self.scopes.len() && !self.scopes[self.scope].kept {
            self.scopes.pop();
        }
        self.scope = outer;
        done
    }

    /// Runs `work` one level deeper.
    pub fn nested<T>(&mut self, work: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        if self.nesting >= MAX_NESTING {
            return fail(format!("maximum recursion depth exceeded: {MAX_NESTING} levels"));
        }
        self.nesting += 1;
        let done = work(self);
        self.nesting -= 1;
        done
    }
}
