"""Frame of the report's page: style, script, toolbar. One file that a browser opens without a single request."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from .. import svg

_STYLE = """
:root{--ink:#1c2126;--soft:#56616b;--paper:#fff;--faint:#9aa4ad;--line:#e1e6ea;--panel:#f5f7f8;--a:#1668b8;--b:#c2410c;
--c:#0f7b4f;--bad:#b42318}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8eb;--soft:#a5b0b9;--paper:#14181b;--faint:#6d7780;--line:#2c343a;
--panel:#1d2327;--a:#6cb2f5;--b:#f2935b;--c:#5fc99a;--bad:#ff8a7d}}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0 auto;max-width:1200px;padding:24px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:24px;margin:0 0 2px}h2{font-size:18px;margin:30px 0 8px}h3{font-size:17px;margin:0 0 2px;
overflow-wrap:anywhere}a{color:var(--a);text-decoration:none}a:hover{text-decoration:underline}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:3px 14px 3px 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}td.n,th.n{text-align:right;white-space:nowrap}
.scroll{overflow:auto;max-height:70vh}.scroll th{position:sticky;top:0;background:var(--paper)}
.clip .scroll th{background:var(--panel)}
.js th[data-sort]{cursor:pointer}.js th[data-sort]:hover{color:var(--a)}
th[data-order=up]::after{content:" \\2191"}th[data-order=down]::after{content:" \\2193"}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.card{background:var(--panel);border-radius:8px;padding:8px 16px;min-width:104px}
.card b{display:block;font-size:22px;line-height:1.3;font-weight:600}.card>span{color:var(--soft);font-size:13px}
.listing{max-height:27rem}
.toolbar{display:none}.js .toolbar{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;position:sticky;top:0;
z-index:2;background:var(--paper);padding:10px 0;border-bottom:1px solid var(--line);margin-top:16px}
.toolbar input[type=search]{min-width:240px}
.toolbar input,.toolbar select{font:inherit;padding:3px 8px;color:var(--ink);background:var(--paper);border:1px solid
var(--faint);border-radius:6px}.toolbar label{display:flex;gap:5px;
align-items:center}.toolbar .note{margin-left:auto}
.clip{background:var(--panel);border-radius:10px;padding:14px 18px;margin:14px 0;scroll-margin-top:64px}
.clip p{margin:4px 0}.pill{display:inline-block;border:1px solid;border-radius:99px;padding:0 10px;font-size:13px;
font-weight:600;vertical-align:2px;margin-left:6px}
.accepted{color:var(--c)}.rejected{color:var(--b)}.failed,.fail{color:var(--bad)}.fail,.accepted,.rejected,.failed{
font-weight:600}
.charts{display:flex;flex-wrap:wrap;gap:10px 16px;margin-top:8px}
.strip{display:flex;flex-wrap:wrap;gap:10px;margin:10px 0}.strip figure{margin:0;max-width:214px}
.strip img{display:block;width:100%;max-height:200px;object-fit:contain;border-radius:6px;background:#0001}
figcaption{font-size:12px;color:var(--soft);font-variant-numeric:tabular-nums}
pre{overflow:auto;font-size:12px}summary{cursor:pointer;color:var(--soft)}details{margin:8px 0}
.empty,.note{color:var(--soft);font-size:13px}
.bar{display:inline-block;width:70px;height:8px;border-radius:4px;background:var(--line);margin-left:8px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--c)}.bar i.low{background:var(--b)}.bar i.out{background:var(--bad)}
@media print{.js .toolbar{display:none}.scroll,.listing{max-height:none}.clip{break-inside:avoid-page}}
"""

_SCRIPT = """
(()=>{const d=document,all=(s,e=d)=>[...e.querySelectorAll(s)];d.documentElement.classList.add('js');
const value=(e,k)=>{const v=e.dataset[k];return v===undefined||v===''?null:isNaN(v)?v:+v};
const order=(list,key,up)=>list.sort((a,b)=>{const x=value(a,key),y=value(b,key);if(x===null||y===null)
return (x===null)-(y===null);const c=typeof x==='number'&&typeof y==='number'?x-y:String(x).localeCompare(String(y));
return up?c:-c});
const q=d.getElementById('q'),sort=d.getElementById('sort'),boxes=all('.toolbar input[type=checkbox]');
const items=all('[data-text]'),count=d.getElementById('count');
const apply=()=>{if(!q)return;const words=q.value.toLowerCase().split(/\\s+/).filter(Boolean);
const on=new Set(boxes.filter(b=>b.checked).map(b=>b.value));let rows=0,shown=0;
for(const e of items){const hit=(!boxes.length||on.has(e.dataset.status))&&words.every(w=>e.dataset.text.includes(w));
e.hidden=!hit;if(e.tagName==='SECTION'){rows++;shown+=hit}}
for(const g of all('.group'))g.hidden=!all('section',g).some(e=>!e.hidden);
count.textContent=shown+' of '+rows+' clips below'};
if(q){q.addEventListener('input',apply);boxes.forEach(b=>b.addEventListener('change',apply));apply();
const groups=all('.group').map(g=>[g,all('section',g)]);
sort.addEventListener('change',()=>{const [key,way]=sort.value.split(':');for(const [g,list] of groups)
for(const e of key?order([...list],key,way==='up'):list)g.append(e)})}
for(const th of all('th[data-sort]'))th.addEventListener('click',()=>{const body=th.closest('table').tBodies[0];
const up=th.dataset.order!=='up';all('th',th.parentNode).forEach(t=>delete t.dataset.order);
th.dataset.order=up?'up':'down';for(const e of order([...body.rows],th.dataset.sort,up))body.append(e)});
})();
"""


@dataclass(frozen=True, kw_only=True)
class SortKey:
    """An entry of the toolbar's list of orders: the `data-` key of clips, and which end comes first."""

    key: str
    label: str
    up: bool = True


def toolbar(statuses: Sequence[str], keys: Sequence[SortKey]) -> str:
    """Search field, status filter and order of the clips; without a script it is not shown."""
    boxes = "".join(
        f'<label><input type="checkbox" value="{s}" checked><span class="{s}">{s}</span></label>'
        for s in statuses
    )
    options = "".join(
        f'<option value="{k.key}:{"up" if k.up else "down"}">{html.escape(k.label)}</option>' for k in keys
    )
    return (
        '<div class="toolbar"><input type="search" id="q" placeholder="filter: clip, source, reason" '
        f'aria-label="filter clips">{boxes if len(statuses) > 1 else ""}<label>order '
        f'<select id="sort"><option value="">as listed</option>{options}</select></label>'
        '<span class="note" id="count"></span></div>'
    )


def page(title: str, body: Sequence[str]) -> str:
    """The whole file."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{svg.STYLE}</style></head>"
        f"<body>{''.join(body)}<script>{_SCRIPT}</script></body></html>\n"
    )


def data_attributes(**values: object) -> str:
    """`data-` attributes; None is left empty."""
    return "".join(
        f' data-{k}="{html.escape("" if v is None else str(v), quote=True)}"' for k, v in values.items()
    )
