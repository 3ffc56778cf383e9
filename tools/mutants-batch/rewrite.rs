//! Puts all mutants of a file behind the switch: text in, text out.
//!
//! Each place that has mutants becomes a node: a range of the source, and pieces (text of ours, and ranges of the source
//! that are written where they stand) that take its place. No range is written twice, so nodes nest to any depth. The
//! tree is kept: where `a - b * c` becomes `a / b * c` for cargo-mutants, it is `a / (b * c)` here.
//!
//! Of every piece of ours it is remembered where it came to stand, and whose it is: the compiler's errors are found by that.

use std::collections::HashMap;
use std::ops::Range;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, UnOp};

use crate::list::{Mutant, Out};

/// The name of the switch in the copy.
const ON: &str = "crate::mutant_switch::on";

/// A file with its mutants behind the switch.
pub struct Rewritten {
    pub text: String,
    /// Where pieces and nodes stand in `text`.
    pub places: Vec<Place>,
}

pub struct Place {
    pub range: Range<usize>,
    pub mutants: Vec<u32>,
    /// The replacement itself, not what is around it.
    pub own: bool,
}

enum Piece {
    Ours(String),
    /// The replacement of one mutant.
    Of(u32, String),
    Source(Range<usize>),
}

struct Node {
    range: Range<usize>,
    pieces: Vec<Piece>,
    mutants: Vec<u32>,
    children: Vec<Node>,
}

/// Rewrites `source`; `mutants` are those of this file with their numbers. What cannot be switched is added to `left`.
pub fn rewrite(source: &str, mutants: &[(u32, &Mutant)], left: &mut Vec<(u32, Out)>) -> Result<Rewritten, String> {
    let file = syn::parse_file(source).map_err(|error| error.to_string())?;
    let mut wanted: HashMap<Site, Vec<(u32, String)>> = HashMap::new();
    for (number, mutant) in mutants {
        let site = (mutant.genre.clone(), mutant.start);
        wanted.entry(site).or_default().push((*number, mutant.replacement.clone()));
    }
    let mut walk = Walk { source, wanted, constant: 0, open: vec![Vec::new()], left };
    walk.visit_file(&file);
    let nodes = walk.open.pop().expect("the file's own level stays");
    let unmet: Vec<u32> = walk.wanted.into_values().flatten().map(|(number, _)| number).collect();
    left.extend(unmet.into_iter().map(|number| (number, Out::unswitchable("the tool does not find its place"))));
    let mut out = Rewritten { text: String::new(), places: Vec::new() };
    out.write(source, 0..source.len(), &nodes);
    Ok(out)
}

impl Rewritten {
    fn write(&mut self, source: &str, range: Range<usize>, nodes: &[Node]) {
        let mut at = range.start;
        for node in nodes.iter().filter(|node| range.start <= node.range.start && node.range.end <= range.end) {
            self.text.push_str(&source[at..node.range.start]);
            at = node.range.end;
            let began = self.text.len();
            for piece in &node.pieces {
                let (mutants, text) = match piece {
                    Piece::Source(range) => {
                        self.write(source, range.clone(), &node.children);
                        continue;
                    }
                    Piece::Ours(text) => (node.mutants.clone(), text),
                    Piece::Of(number, text) => (vec![*number], text),
                };
                let from = self.text.len();
                self.text.push_str(text);
                let (range, own) = (from..self.text.len(), matches!(piece, Piece::Of(..)));
                self.places.push(Place { range, mutants, own });
            }
            let range = began..self.text.len();
            self.places.push(Place { range, mutants: node.mutants.clone(), own: false });
        }
        self.text.push_str(&source[at..range.end]);
    }
}

/// Genre, and where it starts.
type Site = (String, (usize, usize));

/// Mutants of one place, with their replacements.
type Here = Vec<(u32, String)>;

struct Walk<'a> {
    source: &'a str,
    wanted: HashMap<Site, Here>,
    /// How many contexts around this place are constant.
    constant: u32,
    /// Nodes found, for each node that is being visited.
    open: Vec<Vec<Node>>,
    left: &'a mut Vec<(u32, Out)>,
}

fn bytes(spanned: &impl Spanned) -> Range<usize> {
    spanned.span().byte_range()
}

impl Walk<'_> {
    /// The mutants that start at `spanned`, if they can be switched here.
    fn take(&mut self, genre: &str, spanned: &impl Spanned) -> Here {
        let start = spanned.span().start();
        let found = self.wanted.remove(&(genre.to_owned(), (start.line, start.column + 1))).unwrap_or_default();
        if self.constant > 0 {
            return self.leave(found, &Out::unswitchable("in a constant"));
        }
        found
    }

    fn leave(&mut self, mutants: Here, out: &Out) -> Here {
        self.left.extend(mutants.into_iter().map(|(number, _)| (number, out.clone())));
        Here::new()
    }

    /// Adds a node for `here`, or none where there is nothing to switch; `inside` finds the nodes within.
    fn node(&mut self, here: &Here, range: Range<usize>, pieces: Vec<Piece>, inside: impl FnOnce(&mut Self)) {
        if here.is_empty() {
            return inside(self);
        }
        self.open.push(Vec::new());
        inside(self);
        let children = self.open.pop().expect("pushed above");
        let mutants = here.iter().map(|(number, _)| *number).collect();
        let node = Node { range, pieces, mutants, children };
        self.open.last_mut().expect("the file's own level stays").push(node);
    }

    fn constant(&mut self, inside: impl FnOnce(&mut Self)) {
        self.constant += 1;
        inside(self);
        self.constant -= 1;
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block, inside: impl FnOnce(&mut Self)) {
        let outer = self.constant;
        self.constant = u32::from(signature.constness.is_some());
        let opaque = match &signature.output {
            syn::ReturnType::Type(_, kind) => self.source[bytes(kind)].contains("impl "),
            syn::ReturnType::Default => false,
        };
        if let Some(first) = block.stmts.first() {
            let mut here = self.take("FnValue", first);
            if opaque {
                here = self.leave(here, &Out::unswitchable("`impl` is one type, the body's"));
            }
            let at = bytes(first).start;
            for one in here {
                let piece = Piece::Of(one.0, format!("if {ON}({}) {{ return {}; }} ", one.0, one.1));
                self.node(&vec![one], at..at, vec![piece], |_| ());
            }
        }
        inside(self);
        self.constant = outer;
    }

    fn binary(&mut self, node: &syn::ExprBinary) {
        let here = self.take("BinaryOperator", &node.op);
        let lazy = matches!(node.op, BinOp::And(_) | BinOp::Or(_));
        let here = if lazy && (has_let(&node.left) || has_let(&node.right)) {
            self.leave(here, &Out::unviable("`||` in a condition with let"))
        } else {
            here
        };
        let (left, right) = (Piece::Source(bytes(&*node.left)), Piece::Source(bytes(&*node.right)));
        let operator = &self.source[bytes(&node.op)];
        let choose = |target: &str| {
            let mut pieces = Vec::new();
            for (number, other) in &here {
                pieces.push(Piece::Of(*number, format!("if {ON}({number}) {{ {target} {other} r }} else ")));
            }
            pieces.push(Piece::Ours(format!("{{ {target} {operator} r }}")));
            pieces
        };
        let ours = |text: &str| Piece::Ours(text.into());
        let mut pieces = Vec::new();
        if lazy {
            // Which value of the left side asks for the right one is all that tells them apart.
            let number = here.first().map_or(0, |(number, _)| *number);
            let ends = format!("{}{ON}({number})", if matches!(node.op, BinOp::And(_)) { "" } else { "!" });
            pieces.extend([ours("(if ("), left, Piece::Ours(format!(") ^ {ends} {{ ")), right]);
            pieces.push(Piece::Ours(format!(" }} else {{ {ends} }})")));
        } else if assigns(&node.op) {
            pieces.extend([ours("(match ("), right, ours(") { r => match &mut ("), left, ours(") { l => ")]);
            pieces.extend(choose("*l"));
            pieces.push(ours(" } })"));
        } else if compares(&node.op) {
            pieces.extend([ours("(match (&("), left, ours("), &("), right, ours(")) { (l, r) => ")]);
            pieces.extend(choose("l"));
            pieces.push(ours(" })"));
        } else {
            pieces.extend([ours("(match ("), left, ours(", "), right, ours(") { (l, r) => ")]);
            pieces.extend(choose("l"));
            pieces.push(ours(" })"));
        }
        self.node(&here, bytes(node), pieces, |walk| visit::visit_expr_binary(walk, node));
    }
}

fn assigns(op: &BinOp) -> bool {
    use BinOp::{
        AddAssign, BitAndAssign, BitOrAssign, BitXorAssign, DivAssign, MulAssign, RemAssign, ShlAssign, ShrAssign,
        SubAssign,
    };
    matches!(op, AddAssign(_) | SubAssign(_) | MulAssign(_) | DivAssign(_) | RemAssign(_) | BitXorAssign(_))
        || matches!(op, BitAndAssign(_) | BitOrAssign(_) | ShlAssign(_) | ShrAssign(_))
}

fn compares(op: &BinOp) -> bool {
    matches!(op, BinOp::Eq(_) | BinOp::Ne(_) | BinOp::Lt(_) | BinOp::Le(_) | BinOp::Gt(_) | BinOp::Ge(_))
}

/// Whether a `let` of a chain stands in `expr` itself.
fn has_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(node) if matches!(node.op, BinOp::And(_)) => has_let(&node.left) || has_let(&node.right),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.function(&node.sig, &node.block, |walk| visit::visit_item_fn(walk, node));
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.function(&node.sig, &node.block, |walk| visit::visit_impl_item_fn(walk, node));
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        match &node.default {
            Some(block) => self.function(&node.sig, block, |walk| visit::visit_trait_item_fn(walk, node)),
            None => visit::visit_trait_item_fn(self, node),
        }
    }

    fn visit_item_const(&mut self, node: &'ast syn::ItemConst) {
        self.constant(|walk| visit::visit_item_const(walk, node));
    }

    fn visit_item_static(&mut self, node: &'ast syn::ItemStatic) {
        self.constant(|walk| visit::visit_item_static(walk, node));
    }

    fn visit_impl_item_const(&mut self, node: &'ast syn::ImplItemConst) {
        self.constant(|walk| visit::visit_impl_item_const(walk, node));
    }

    fn visit_trait_item_const(&mut self, node: &'ast syn::TraitItemConst) {
        self.constant(|walk| visit::visit_trait_item_const(walk, node));
    }

    fn visit_expr_const(&mut self, node: &'ast syn::ExprConst) {
        self.constant(|walk| visit::visit_expr_const(walk, node));
    }

    fn visit_type_array(&mut self, node: &'ast syn::TypeArray) {
        self.constant(|walk| visit::visit_type_array(walk, node));
    }

    fn visit_variant(&mut self, node: &'ast syn::Variant) {
        self.constant(|walk| visit::visit_variant(walk, node));
    }

    fn visit_generic_argument(&mut self, node: &'ast syn::GenericArgument) {
        self.constant(|walk| visit::visit_generic_argument(walk, node));
    }

    fn visit_pat(&mut self, node: &'ast syn::Pat) {
        self.constant(|walk| visit::visit_pat(walk, node));
    }

    fn visit_expr_repeat(&mut self, node: &'ast syn::ExprRepeat) {
        self.visit_expr(&node.expr);
        self.constant(|walk| walk.visit_expr(&node.len));
    }

    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        self.binary(node);
    }

    fn visit_expr_unary(&mut self, node: &'ast syn::ExprUnary) {
        let here = match node.op {
            UnOp::Not(_) | UnOp::Neg(_) => self.take("UnaryOperator", &node.op),
            _ => Here::new(),
        };
        let operator = &self.source[bytes(&node.op)];
        let number = here.first().map_or(0, |(number, _)| *number);
        let pieces = vec![
            Piece::Ours("(match (".into()),
            Piece::Source(bytes(&*node.expr)),
            Piece::Ours(format!(") {{ v => if {ON}({number}) {{ v }} else {{ {operator}v }} }})")),
        ];
        self.node(&here, bytes(node), pieces, |walk| visit::visit_expr_unary(walk, node));
    }

    fn visit_expr_match(&mut self, node: &'ast syn::ExprMatch) {
        let rest = |arm: &syn::Arm| arm.guard.is_none() && matches!(arm.pat, syn::Pat::Wild(_));
        if !node.arms.iter().any(rest) {
            // cargo-mutants takes `_ if …` for a rest, too.
            for arm in &node.arms {
                let here = self.take("MatchArm", arm);
                self.leave(here, &Out::unviable("the match is not exhaustive without it"));
            }
        }
        visit::visit_expr_match(self, node);
    }

    fn visit_arm(&mut self, node: &'ast syn::Arm) {
        let deleted = self.take("MatchArm", node);
        let number = deleted.first().map_or(0, |(number, _)| *number);
        let pat = bytes(&node.pat);
        self.visit_pat(&node.pat);
        let Some((_, guard)) = &node.guard else {
            let piece = Piece::Ours(format!(" if !{ON}({number})"));
            self.node(&deleted, pat.end..pat.end, vec![piece], |_| ());
            return self.visit_expr(&node.body);
        };
        let guarded = self.take("MatchArmGuard", &**guard);
        let range = bytes(&**guard);
        let ours = |text: String| Piece::Ours(text);
        let around = vec![ours(format!("!{ON}({number}) && (")), Piece::Source(range.clone()), ours(")".into())];
        let of = |word: &str| guarded.iter().find(|(_, text)| text == word).map_or(0, |(number, _)| *number);
        let choose = vec![
            ours(format!("({ON}({}) || (!{ON}({}) && (", of("true"), of("false"))),
            Piece::Source(range.clone()),
            ours(")))".into()),
        ];
        self.node(&deleted, range.clone(), around, |walk| {
            walk.node(&guarded, range, choose, |walk| walk.visit_expr(guard));
        });
        self.visit_expr(&node.body);
    }

    fn visit_expr_struct(&mut self, node: &'ast syn::ExprStruct) {
        let Some(rest) = &node.rest else { return visit::visit_expr_struct(self, node) };
        let (path, base) = (&self.source[bytes(&node.path)], &self.source[bytes(&**rest)]);
        for field in &node.fields {
            let here = self.take("StructField", field);
            let (name, range) = (&self.source[bytes(&field.member)], bytes(field));
            // Where the rest is a place, only this field of it is taken.
            let other = match &**rest {
                Expr::Path(_) | Expr::Field(_) | Expr::Unary(_) => format!("({base}).{name}"),
                _ => format!("({path} {{ ..{base} }}).{name}"),
            };
            let number = here.first().map_or(0, |(number, _)| *number);
            let pieces = vec![
                Piece::Ours(format!("{name}: if {ON}({number}) {{ {other} }} else {{ ")),
                Piece::Source(bytes(&field.expr)),
                Piece::Ours(" }".into()),
            ];
            self.node(&here, range, pieces, |walk| walk.visit_expr(&field.expr));
        }
        self.visit_expr(rest);
    }
}
