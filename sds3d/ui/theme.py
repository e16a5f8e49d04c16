"""How it looks: a theme of the system's own fonts, and the style of our own pieces of HTML."""

# gradio offers these names without exporting them in its types.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import sizes

TITLE = "sds3d: text to 3D"

THEME = gr.themes.Default(
    primary_hue=gr.themes.colors.teal,
    secondary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    radius_size=sizes.radius_md,
    # Plain names are fonts of the machine; gradio's default would be fetched from elsewhere.
    font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(
    # gradio's own grey is too light to be read on white.
    body_text_color_subdued="*neutral_500",
    block_info_text_color="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color_dark="*neutral_400",
    # And what is not chosen can hardly be seen in the dark.
    checkbox_border_color_dark="*neutral_500",
)

CSS = """
.gradio-container { margin: 0 auto !important; max-width: 1240px !important;
  width: 100% !important; }
.gradio-container main { max-width: none !important; width: 100% !important; }
.block:has(> .html-container > div:empty) { display: none !important; }
#head h1 { font-size: 1.5rem; margin: 0; }
#head p { color: var(--body-text-color-subdued); margin: .1rem 0 0; }
.examples { display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)); }
.examples button { background: var(--background-fill-secondary); cursor: pointer;
  border: 1px solid var(--border-color-primary); border-radius: .5rem; display: flex;
  flex-direction: column; overflow: hidden; padding: 0; }
.examples button:hover, .examples button:focus-visible { border-color: var(--primary-500); }
.examples img { aspect-ratio: 1; background: #fff; display: block; object-fit: cover; width: 100%; }
.examples span { color: var(--body-text-color); font-size: .75rem; line-height: 1.25;
  padding: .25rem .35rem .3rem; text-align: left; }
.options { display: block !important; }
.options > .form { align-items: stretch; background: var(--block-background-fill) !important;
  display: grid !important; width: 100%;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 11.5rem), 1fr)); }
.options > .form > * { min-width: 0 !important; width: 100% !important; }
.race { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); margin-bottom: .6rem; }
.race article { border: 2px solid var(--border-color-primary); border-radius: .6rem;
  padding: .5rem .6rem; }
.race article.best { border-color: var(--primary-500); }
.actions, .bottom { align-items: flex-end; flex-wrap: wrap; }
.actions button { min-width: 6.5rem !important; }
.bottom button { flex: 0 0 auto !important; height: 2.6rem; }
.notice { border-left: 3px solid var(--neutral-400); margin: .4rem 0; overflow-wrap: anywhere;
  padding: .3rem .6rem; background: var(--background-fill-secondary); }
.notice.error { border-color: #dc2626; }
.notice.warning { border-color: #d97706; }
.status h3 { font-size: 1.05rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.status .state { background: var(--primary-600); border-radius: .3rem; color: #fff;
  font-size: .8rem; margin-right: .3rem; padding: .1rem .45rem; vertical-align: .1em; }
.status.failed .state { background: #b91c1c; }
.status.queued .state, .status.cancelled .state { background: var(--neutral-500); }
.status.stopped .state, .status.stopping .state { background: #b45309; }
.race .status.stopped .state { background: var(--primary-600); }
.status progress { appearance: none; background: var(--neutral-200); border: 0; border-radius: 9px;
  display: block; height: .5rem; margin: .4rem 0; overflow: hidden; width: 100%; }
.dark .status progress { background: var(--neutral-700); }
.status progress::-webkit-progress-bar { background: transparent; }
.status progress::-webkit-progress-value { background: var(--primary-500); }
.status progress::-moz-progress-bar { background: var(--primary-500); }
.status .facts, .status .health { color: var(--body-text-color-subdued); font-size: .875rem;
  font-variant-numeric: tabular-nums; margin: .2rem 0 0; }
.growing { background: #ededed; border-radius: .5rem; display: block; width: 100%;
  aspect-ratio: 4 / 1; object-fit: contain; image-rendering: auto; }
.growing.none { align-items: center; aspect-ratio: 4 / 1; color: var(--body-text-color-subdued);
  background: var(--background-fill-secondary); border: 1px dashed var(--border-color-primary);
  display: flex; justify-content: center; padding: 1rem; text-align: center; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plot { flex: 1 1 14rem; margin: 0; }
.plot figcaption { color: var(--body-text-color-subdued); font-size: .8rem; }
.plot b { color: var(--body-text-color); font-weight: 600; }
.plot svg { border: 1px solid var(--border-color-primary); border-radius: .4rem; display: block;
  height: 6rem; width: 100%; }
.plot polyline { fill: none; stroke: var(--primary-500); stroke-width: 2;
  vector-effect: non-scaling-stroke; }
.plot polyline.line-1 { stroke: #d97706; }
.plot polyline.line-2 { stroke: #7c3aed; }
.plot polyline.line-3 { stroke: #db2777; }
.plot b.line-1 { color: #d97706; }
.plot b.line-2 { color: #8b5cf6; }
.plot b.line-3 { color: #db2777; }
.turntable, .sheet { border-radius: .5rem; display: block; width: 100%; background: #fff; }
.sheet { margin-top: .6rem; }
.report { align-items: start; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.statistics { border-collapse: collapse; font-size: .9rem; width: 100%; }
.statistics th, .statistics td { border-bottom: 1px solid var(--border-color-primary);
  padding: .25rem .4rem; text-align: left; font-variant-numeric: tabular-nums; }
.statistics th { color: var(--body-text-color-subdued); font-weight: 400; }
.statistics td.best { font-weight: 700; }
.downloads { display: flex; flex-wrap: wrap; gap: .5rem; margin: .6rem 0; }
.downloads a, .button { background: var(--button-secondary-background-fill);
  border: 1px solid var(--border-color-primary); border-radius: .4rem;
  color: var(--button-secondary-text-color) !important; cursor: pointer; font-size: .875rem;
  padding: .35rem .8rem; text-decoration: none !important; }
.downloads a:first-child { background: var(--primary-600); color: #fff !important; }
.gallery { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.gallery article { border: 1px solid var(--border-color-primary); border-radius: .5rem;
  display: flex; flex-direction: column; overflow: hidden; }
.gallery .thumb { aspect-ratio: 4 / 3; background: #fff; display: block; overflow: hidden;
  position: relative; }
.gallery .thumb img { height: 100%; width: 100%; object-fit: cover; object-position: left top;
  display: block; }
.gallery .thumb.sheet4 img { height: 200%; width: 400%; max-width: none; object-fit: fill; }
.gallery .thumb.sheet4 { aspect-ratio: 1; }
.gallery .thumb.none { align-items: center; background: var(--background-fill-secondary);
  color: var(--body-text-color-subdued); display: flex; justify-content: center; aspect-ratio: 1; }
.gallery .growing4 { aspect-ratio: 1; }
.gallery .growing4 img { width: 400%; max-width: none; object-fit: fill; }
.gallery h4 { font-size: .95rem; margin: .5rem .6rem 0; overflow-wrap: anywhere; }
.gallery p { color: var(--body-text-color-subdued); font-size: .8rem; margin: .1rem .6rem; }
.gallery footer { display: flex; flex-wrap: wrap; gap: .35rem; margin-top: auto; padding: .6rem; }
.gallery .button { font-size: .8rem; padding: .2rem .55rem; }
.card h3 { margin: 0; font-size: 1.1rem; }
.card .equation { background: var(--background-fill-secondary); border-radius: .4rem;
  font-family: var(--font-mono); font-size: .85rem; overflow-x: auto; padding: .5rem .7rem; }
.card p { margin: .3rem 0; }
.card dl { display: grid; gap: .15rem .8rem; grid-template-columns: max-content 1fr;
  font-size: .875rem; margin: .4rem 0 0; }
.card dt { color: var(--body-text-color-subdued); }
.card dd { margin: 0; overflow-wrap: anywhere; }
.students { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.students img { background: #fff; border-radius: .4rem; display: block; margin-top: .5rem;
  width: 100%; }
.teacher-preview img { border-radius: .5rem; width: 100%; }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  /* What is left of it is hidden there by gradio. */
  footer .show-api-divider { display: none !important; }
  .growing, .growing.none { aspect-ratio: auto; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
}
"""
