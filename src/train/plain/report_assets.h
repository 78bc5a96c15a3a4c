// The style sheet and the hover script of the report. Both are plain text inside the page: it needs
// no network and, but for the hover, no scripts.
#pragma once

#include <string_view>

namespace amoeba::train {

inline constexpr std::string_view kReportStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #f7f6f3; --panel: #ffffff; --ink: #1c1e22; --muted: #666b74; --edge: #e3e1db;
  --grid: #edebe6; --axis: #b9b6ae; --accent: #2a67ad; --warn: #c4302b;
  --h0: #1d4f91; --h1: #4a80bd; --h2: #84add6; --h3: #bfd6eb; --h4: #efede8;
  --h5: #fbd9b5; --h6: #f3ae6d; --h7: #d97b2c; --h8: #a14a0b; --h9: #b5179e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --panel: #1c1f25; --ink: #e7e8ea; --muted: #9aa0aa; --edge: #2c3038;
    --grid: #292d34; --axis: #545a65; --accent: #6ba6ea; --warn: #ff7b72;
    --h0: #9ccbff; --h1: #669fdd; --h2: #41719f; --h3: #31485f; --h4: #2c2f36;
    --h5: #57432f; --h6: #8d5f2e; --h7: #cf8838; --h8: #ffc27a; --h9: #ec5fd3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 36px 24px 64px; }
header p { margin: 4px 0 0; color: var(--muted); overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 28px; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 18px; }
h3 { margin: 0; font-size: 14px; font-weight: 600; }
h3 span { color: var(--muted); font-weight: 400; margin-left: 6px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; margin-top: 24px; }
.card, .panel { background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; min-width: 0; }
.card { padding: 12px 16px; margin: 0; }
.card dt { color: var(--muted); font-size: 13px; }
.card dd { margin: 0; font-size: 24px; line-height: 1.35; font-weight: 600; letter-spacing: -0.01em; overflow-wrap: anywhere; }
.card dd.small { font-size: 17px; line-height: 1.9; }
.card dd.note { margin: 0; color: var(--muted); font-size: 13px; font-weight: 400; letter-spacing: 0; line-height: 1.45; max-width: none; }
.panel { padding: 14px 16px 8px; margin-bottom: 12px; }
.pair, .layers { display: grid; gap: 12px; }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.layers { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.layers.many { grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); }
.pair .panel, .layers .panel { margin: 0; }
.pair { margin-bottom: 12px; }
.chart { display: block; width: 100%; height: auto; margin-top: 6px; overflow: visible; }
.chart text { font-size: 11px; fill: var(--ink); }
.chart .tick { fill: var(--muted); }
.grid, .axis, .mark, .line { fill: none; }
.grid { stroke: var(--grid); }
.axis { stroke: var(--axis); }
.mark { stroke: var(--warn); stroke-dasharray: 3 3; opacity: 0.75; }
.line { stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.lone { stroke-width: 5; opacity: 1; }
.line.raw { stroke-width: 1; opacity: 0.5; }
.label.main { fill: var(--accent); font-weight: 600; }
.label.raw { fill: var(--muted); }
.dot { fill: var(--panel); stroke: var(--ink); stroke-width: 1.6; }
.label.dots { font-weight: 600; }
.heat { stroke-width: 1; fill: none; shape-rendering: crispEdges; }
.h0 { stroke: var(--h0); background: var(--h0); } .h1 { stroke: var(--h1); background: var(--h1); }
.h2 { stroke: var(--h2); background: var(--h2); } .h3 { stroke: var(--h3); background: var(--h3); }
.h4 { stroke: var(--h4); background: var(--h4); } .h5 { stroke: var(--h5); background: var(--h5); }
.h6 { stroke: var(--h6); background: var(--h6); } .h7 { stroke: var(--h7); background: var(--h7); }
.h8 { stroke: var(--h8); background: var(--h8); } .h9 { stroke: var(--h9); background: var(--h9); }
.legend { display: flex; flex-wrap: wrap; list-style: none; gap: 4px 0; margin: 0 0 12px; padding: 0; font-size: 12px; color: var(--muted); }
.legend li { min-width: 52px; text-align: center; }
.legend li:first-child { margin-right: 16px; }
.legend i { display: block; height: 12px; border-block: 1px solid var(--edge); }
p.note { color: var(--muted); margin: -6px 0 12px; font-size: 14px; max-width: 75ch; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.panel > pre { padding-bottom: 8px; }
pre b { color: var(--accent); }
.tables { columns: 3 300px; column-gap: 12px; }
.tables .panel { break-inside: avoid; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
td, th { padding: 4px 0; border-top: 1px solid var(--grid); vertical-align: top; text-align: left; font-weight: 400; overflow-wrap: anywhere; }
tr:first-child td, tr:first-child th { border-top: 0; }
th { color: var(--muted); padding-right: 16px; width: 45%; }
#hover { position: fixed; pointer-events: none; display: none; background: var(--ink); color: var(--page); padding: 4px 8px; border-radius: 4px; font-size: 12px; white-space: pre; }
@media (max-width: 720px) { .panel { overflow-x: auto; } .chart.wide { width: 720px; } }
@media print { body { background: none; } .panel, .card { break-inside: avoid; } }
)css";

// Shows the place on the x axis and the values of the nearest points: it reads them back from the
// drawn lines.
inline constexpr std::string_view kReportScript = R"js(
const hover = document.getElementById('hover');
for (const svg of document.querySelectorAll('svg[data-frame]')) {
  const [left, right, top, bottom, x0, x1, y0, y1, log] = svg.dataset.frame.split(' ').map(Number);
  const lines = [...svg.querySelectorAll('path[data-name]')].map(path => ({
    name: path.dataset.name,
    points: [...path.getAttribute('d').matchAll(/[ML]([-.\d]+) ([-.\d]+)/g)].map(m => [+m[1], +m[2]]),
  })).filter(line => line.points.length);
  const value = y => {
    const share = (bottom - y) / (bottom - top);
    return log ? y0 * Math.pow(y1 / y0, share) : y0 + share * (y1 - y0);
  };
  svg.addEventListener('pointerleave', () => { hover.style.display = 'none'; });
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const near = lines.map(line => ({
      name: line.name,
      point: line.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a),
    }));
    if (!near.length) return;
    const at = near.reduce((a, b) => Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a).point[0];
    const share = (at - left) / (right - left);
    const place = svg.dataset.logX ? (x0 * Math.pow(x1 / x0, share)).toPrecision(3)
                                   : Math.round(x0 + share * (x1 - x0));
    hover.textContent = [svg.dataset.x + ' ' + place].concat(near.filter(n => Math.abs(n.point[0] - at) < 1)
      .map(n => n.name + ' ' + Number(value(n.point[1]).toPrecision(3)))).join('\n');
    hover.style.display = 'block';
    const side = event.clientX + 14 + hover.offsetWidth > innerWidth ? -14 - hover.offsetWidth : 14;
    hover.style.left = event.clientX + side + 'px';
    hover.style.top = event.clientY + 14 + 'px';
  });
}
)js";

}  // namespace amoeba::train
