"""The style of the distillation tab's own pieces of HTML."""

from __future__ import annotations

CSS = """
#taxonomy { max-height: 27rem; overflow: hidden auto !important;
  border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .2rem .8rem .8rem; }
.taxonomy { display: grid; gap: 0 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.taxonomy h4 { background: var(--body-background-fill); font-size: .95rem; margin: 0;
  padding: .6rem 0 .2rem; position: sticky; top: -.2rem; z-index: 1; }
.taxonomy h5 { color: var(--body-text-color); font-size: .85rem; font-weight: 600;
  margin: .5rem 0 .3rem; }
.taxonomy h5 small { color: var(--body-text-color-subdued); font-weight: 400; }
.taxonomy .method { background: var(--background-fill-secondary); border-radius: .4rem;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color); cursor: pointer;
  display: block; font-size: .85rem; line-height: 1.35; margin: 0 0 .35rem; padding: .35rem .6rem;
  text-align: left; width: 100%; }
.taxonomy .method b { font-weight: 600; }
.taxonomy .method:hover { border-color: var(--primary-500); }
.taxonomy .method[aria-pressed=true] { border-color: var(--primary-500);
  box-shadow: inset 3px 0 var(--primary-500); }
.taxonomy .nfe { color: var(--body-text-color-subdued); float: right; font-size: .75rem;
  margin-left: .5rem; white-space: nowrap; }
.taxonomy .idea { color: var(--body-text-color-subdued); display: block; font-size: .8rem; }
.taxonomy .unfit b { font-weight: 400; opacity: .75; }
.taxonomy .refusal { color: var(--body-text-color); display: block; font-size: .75rem;
  border-left: 2px solid #d97706; margin-top: .2rem; padding-left: .4rem; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.students { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 12.5rem), 1fr)); }
.students > section { min-width: 0; max-width: 24rem; }
.students h3 { font-size: 1rem; margin: 0; }
.students .facts { color: var(--body-text-color-subdued); font-size: .8rem; margin: .1rem 0 .3rem;
  min-height: 1.2em; font-variant-numeric: tabular-nums; }
.students img, .students .picture { aspect-ratio: 1; background: none; display: block; margin: 0;
  border: 1px solid var(--border-color-primary); border-radius: .4rem; width: 100%; }
.students.digits img, .students.digits .picture { aspect-ratio: 5 / 3; image-rendering: pixelated; }
.students.clouds img, .students.clouds .picture { aspect-ratio: 3 / 2; }
.students img.sheet { aspect-ratio: auto; background: #fff; }
.students .picture.none { align-items: center; color: var(--body-text-color-subdued);
  display: flex; font-size: .85rem; justify-content: center; padding: .5rem; text-align: center; }
.students .plot { margin-top: .4rem; }
.students .plot svg { height: 3.2rem; }
.students .plot b.line-1, .legend b.line-1 { color: #d97706; }
.students .plot b.line-2 { color: #7c3aed; }
.students .links { display: flex; flex-wrap: wrap; gap: .3rem .9rem; font-size: .8rem;
  margin-top: .4rem; }
.students .links a { text-decoration: underline; }
.legend { color: var(--body-text-color-subdued); font-size: .8rem; margin: .6rem 0; }
.legend i { border-radius: 50%; display: inline-block; height: .6rem; margin: 0 .2rem 0 .6rem;
  width: .6rem; }
.legend i.density { background: rgb(120 135 155 / 60%); margin-left: 0; }
.legend i.sample { background: #0d9488; }
.legend i.path { background: #d97706; border-radius: 0; height: 2px; vertical-align: middle;
  width: 1rem; }
.wide { overflow-x: auto; }
.wide th[scope=row] { min-width: 9rem; }
.shipped { display: grid; gap: 1rem; }
@media (max-width: 640px) {
  #taxonomy { max-height: 22rem; }
  .students { gap: .7rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .students .plot figcaption { font-size: .7rem; }
  .students h3, .students .facts { min-height: 3em; }
}
"""
