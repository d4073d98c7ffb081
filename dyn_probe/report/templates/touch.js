(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("touch-data").textContent);
  var narrow = 560, drawn = [], waiting = [];

  // Small things: elements, numbers, colours.
  function make(tag, name, text) {
    var element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function finite(value) { return value !== null && value !== undefined; }
  function said(value) {
    if (!finite(value)) return "–";
    return (value === 0 ? "0" : String(Number(value.toPrecision(3)))).replace("-", "−");
  }
  function ink(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
  function live(name, more) { return function () { return ink(name) + (more || ""); }; }  // asked again with every drawing: the colours follow the theme
  function heading(box, title, unit) {
    var line = make("div", "touch-title", title + (unit ? ", " + unit : "")), out = make("button", "zoom-out", "zoom out");
    out.type = "button";
    out.hidden = true;
    line.appendChild(out);
    box.appendChild(line);
    return out;
  }

  // A chart over steps: lines, bands, values at the pointer, zoom by dragging.
  function axes(most) {
    var faint = live("line");
    function look(more) {
      return Object.assign({stroke: live("soft"), grid: {stroke: faint, width: 1}, ticks: {stroke: faint, width: 1, size: 4}, font: "11px system-ui, sans-serif"}, more);
    }
    var x = look({size: 28, gap: 2, space: 60}), y = look({size: most, gap: 2});
    x.values = function (u, found) { return found.map(function (v) { return Number.isInteger(v) ? said(v) : ""; }); };
    y.values = function (u, found) { return found.map(said); };
    return [x, y];
  }
  function steps(one, k) {
    if (k === null) return "–";
    return one.low[k] === one.high[k] ? String(one.low[k]) : one.low[k] + "–" + one.high[k];
  }
  function lines(one) {
    var series = [{label: "step", value: function (u, v, s, k) { return steps(one, k); }}];
    var columns = [one.x], bands = [];
    one.series.forEach(function (line) {
      var colour = "line-" + line.colour, few = line.values.filter(finite).length < 30;
      series.push({
        label: line.label, stroke: live(colour), width: line.label === "total" ? 2.4 : 1.7, spanGaps: true,
        dash: line.dashed ? [5, 4] : undefined, points: {show: few, size: 5},
        value: function (u, v, s, k) {
          var band = k !== null && line.low && finite(line.low[k]);
          return said(v) + (band ? " (" + said(line.low[k]) + " to " + said(line.high[k]) + ")" : "");
        },
      });
      columns.push(line.values);
      if (!line.low) return;
      [line.high, line.low].forEach(function (edge) {
        series.push({class: "edge", stroke: "transparent", width: 0, points: {show: false}, spanGaps: true});
        columns.push(edge);
      });
      bands.push({series: [series.length - 2, series.length - 1], fill: live(colour, "30")});
    });
    return {series: series, columns: columns, bands: bands};
  }
  function together(u, k, change) {  // a line's band comes and goes with it
    if (k === null || change.show === undefined) return;
    for (var next = k + 1; next < u.series.length && u.series[next].class === "edge"; next += 1)
      if (u.series[next].show !== change.show) u.setSeries(next, {show: change.show}, false);
  }
  function chart(box, one, height, key, shared) {
    var out = heading(box, one.title, one.unit), found = lines(one), whole = [one.low[0], one.high[one.high.length - 1]];
    if (whole[0] === whole[1]) whole = [whole[0] - 1, whole[1] + 1];
    var plot = new uPlot({
      width: Math.max(120, box.clientWidth), height: height, series: found.series, bands: found.bands, axes: axes(52),
      scales: {x: {time: false, range: function (u, low, high) { return u.zoomed ? [low, high] : whole; }}},
      cursor: {sync: {key: key}, drag: {x: true, y: false, setScale: false}}, padding: [8, 10, 0, 0],
      legend: {live: true, show: !shared},
      hooks: {
        setSeries: [together], setCursor: shared ? [shared, idle] : [idle],
        setSelect: [function (u) {
          if (u.select.width < 4) return;
          zoom(key, u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
        }],
        draw: [function (u) { level(u, one.level); }],
      },
    }, found.columns, box);
    plot.whole = whole;
    plot.key = key;
    idle(plot);
    plot.out = out;
    plot.root.setAttribute("role", "img");
    plot.root.setAttribute("aria-label", one.title + " over the steps of the run");
    out.addEventListener("click", function () { zoom(key, null); });
    plot.over.addEventListener("dblclick", function () { zoom(key, null); });
    settle(plot);
    drawn.push({plot: plot, box: box, height: height});
    return plot;
  }
  function idle(u) {  // a legend without a cursor has no values to name
    u.root.classList.toggle("idle", !finite(u.cursor.idx));
  }
  function settle(plot) {  // what opens above a chart moves it: where it stands is asked again before it is pointed at
    plot.over.addEventListener("mouseenter", function () { plot.syncRect(); }, true);
  }
  function level(u, value) {
    var at = u.valToPos(value, "y", true), low = u.bbox.top, high = u.bbox.top + u.bbox.height;
    if (!(at >= low && at <= high)) return;
    u.ctx.save();
    u.ctx.strokeStyle = ink("soft");
    u.ctx.setLineDash([3, 3]);
    u.ctx.beginPath();
    u.ctx.moveTo(u.bbox.left, at);
    u.ctx.lineTo(u.bbox.left + u.bbox.width, at);
    u.ctx.stroke();
    u.ctx.restore();
  }
  function zoom(key, low, high) {  // all charts of a figure at once
    drawn.forEach(function (entry) {
      var plot = entry.plot;
      if (plot.key !== key) return;
      plot.zoomed = low !== null;
      plot.out.hidden = low === null;
      plot.setScale("x", low === null ? {min: plot.whole[0], max: plot.whole[1]} : {min: low, max: high});
    });
  }

  // One legend for charts with the same lines, side by side: a name, and its value in each of them.
  function legend(box, charts) {
    var names = [], values = {}, list = make("div", "shared-legend");
    charts.forEach(function (one) {
      one.series.forEach(function (line) { if (names.indexOf(line.label) < 0) names.push(line.label); });
    });
    names.forEach(function (name) {
      var button = make("button", "entry"), mark = make("i"), colour = null;
      charts.forEach(function (one) { one.series.forEach(function (line) { if (line.label === name) colour = colour || line.colour; }); });
      mark.style.background = "var(--line-" + (name === "measured" ? "measured" : colour) + ")";
      button.type = "button";
      button.appendChild(mark);
      button.appendChild(document.createTextNode(name + " "));
      values[name] = button.appendChild(make("b"));
      button.addEventListener("click", function () {
        var off = button.classList.toggle("off");
        drawn.forEach(function (entry) {
          if (entry.legend !== list) return;
          entry.plot.series.forEach(function (line, k) { if (k && line.label === name) entry.plot.setSeries(k, {show: !off}); });
        });
      });
      list.appendChild(button);
    });
    box.appendChild(list);
    return {list: list, say: function () {
      names.forEach(function (name) {
        var found = [];
        drawn.forEach(function (entry) {
          if (entry.legend !== list || !finite(entry.plot.cursor.idx)) return;
          var k = entry.plot.series.findIndex(function (line) { return line.label === name; });
          found.push(k > 0 ? said(entry.plot.data[k][entry.plot.cursor.idx]) : "–");
        });
        values[name].textContent = found.join(" · ");
      });
    }};
  }

  // The figures of the page: each stands in the place of its picture, which stays for paper.
  function place(box) {
    var name = box.dataset.place, own = data.charts.filter(function (one) { return one.place === name; });
    if (!own.length) return;
    box.hidden = false;
    box.parentNode.classList.add("touched");
    var pushed = own.filter(function (one) { return one.unit === "nats a step"; }), rooms = own.map(function (one) {
      return box.appendChild(make("div", pushed.indexOf(one) >= 0 ? "touch-chart half" : "touch-chart"));
    });
    var one = pushed.length ? legend(box, pushed) : null;
    own.forEach(function (each, k) {
      var half = pushed.indexOf(each) >= 0;
      chart(rooms[k], each, half ? 145 : name === "story" ? 175 : 230, name, half && one.say);
      if (half) drawn[drawn.length - 1].legend = one.list;
    });
    box.appendChild(make("p", "small touch-help", "Point for values" + (one ? " (pushes: on " + pushed.map(function (each) { return each.side; }).join(" · on ") + ")" : "") + ", drag to zoom, double-click for all steps; click a name to hide its line."));
  }

  // The pairs: scatter, table, one pair's own panel.
  function pairView(box) {
    var pairs = data.pairs, find = function (name) { return box.querySelector("[data-part=" + name + "]"); };
    var body = find("rows"), note = find("note"), filter = find("filter"), cases = find("case"), more = find("more"), panel = find("panel");
    var place = {}, order = [], by = -1, up = true, shown = 50, open = null, scatter = null;
    pairs.columns.forEach(function (column, k) { place[column.key] = k; });
    var caseColumn = pairs.columns.findIndex(function (column) { return column.label === "case"; });
    var words = pairs.texts.map(function (text, k) {
      return (pairs.ids[k] + " " + [text[0], joined(text[1]), joined(text[2])].join(" ")).toLowerCase();
    });
    function joined(pieces) { return pieces.map(function (piece) { return Array.isArray(piece) ? piece[0] : piece; }).join(""); }

    function pick() {
      var wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean), one = cases.value;
      order = pairs.ids.map(function (id, k) { return k; }).filter(function (k) {
        var here = one === "" || String(pairs.numbers[caseColumn][k]) === one;
        return here && wanted.every(function (word) { return words[k].indexOf(word) >= 0; });
      });
      if (by >= 0) {
        var values = pairs.numbers[by];
        order.sort(function (a, b) {
          if (!finite(values[a]) || !finite(values[b])) return finite(values[b]) - finite(values[a]);
          return up ? values[a] - values[b] : values[b] - values[a];
        });
      }
      shown = 50;
      fill();
      if (scatter) scatter.redraw();
    }
    function fill() {
      body.textContent = "";
      order.slice(0, shown).forEach(function (k) {
        var row = make("tr"), name = make("td", "preview"), button = make("button", "open", pairs.texts[k][0].trim().slice(0, 160) || pairs.ids[k]);
        button.type = "button";
        row.dataset.pair = pairs.ids[k];
        row.appendChild(make("td", "number", String(k + 1)));
        name.appendChild(button);
        row.appendChild(name);
        pairs.numbers.forEach(function (values) { row.appendChild(make("td", "number", said(values[k]))); });
        if (k === open) row.classList.add("open");
        row.addEventListener("click", function () { show(k, false); });
        body.appendChild(row);
      });
      more.hidden = order.length <= shown;
      note.textContent = order.length + " of " + pairs.ids.length + " pairs" + (pairs.total > pairs.ids.length ? " on this page (the run has " + pairs.total + ": the first of the ranking in full, the others as a sample)" : "");
    }
    function sort(k, head) {
      up = by === k ? !up : true;
      by = k;
      box.querySelectorAll("th[aria-sort]").forEach(function (other) { other.setAttribute("aria-sort", "none"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      pick();
    }
    var top = find("heads");
    pairs.columns.forEach(function (column, k) {
      var head = make("th", "number"), button = make("button", "", column.label);
      button.type = "button";
      button.title = column.key + (column.unit ? ", " + column.unit : "");
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () { sort(k, head); });
      head.appendChild(button);
      top.appendChild(head);
    });
    filter.addEventListener("input", pick);
    cases.addEventListener("change", pick);
    cases.parentNode.hidden = caseColumn < 0;
    more.addEventListener("click", function () { shown += 200; fill(); });

    function response(side, pieces, share) {
      panel.appendChild(make("div", "tag " + side, side));
      var text = make("div", "text " + side);
      pieces.forEach(function (piece) {
        text.appendChild(Array.isArray(piece) ? make("mark", "", piece[0]) : document.createTextNode(piece));
      });
      panel.appendChild(text);
      if (!share) return;
      var tokens = make("div", "shares"), most = Math.max.apply(null, share[1].map(function (v) { return Math.abs(v || 0); })) || 1;
      share[0].forEach(function (token, k) {
        var value = share[1][k], word = make("span", "", token);
        var strength = Math.round(12 + 78 * Math.abs(value || 0) / most) + "%";
        if (value) word.style.background = "color-mix(in srgb, var(--line-" + (value > 0 ? "rejected" : "chosen") + ") " + strength + ", transparent)";
        word.title = finite(value) ? said(100 * value) + " % of the inner product" : "no share: the sum is rounding error";
        tokens.appendChild(word);
      });
      panel.appendChild(tokens);
    }
    function over(title, unit, values, at) {
      var room = make("div", "touch-chart half"), named = Object.keys(values).filter(function (name) { return name !== "steps"; });
      if (!named.length || !at.length) return;
      panel.appendChild(room);
      chart(room, {title: title, unit: unit, x: at, low: at, high: at, level: 0, series: named.map(function (name) {
        return {label: data.parts[name] || name, colour: name, values: values[name]};
      })}, 180, "pair");
    }
    function show(k, scroll) {
      drawn = drawn.filter(function (entry) { if (entry.plot.key !== "pair") return true; entry.plot.destroy(); return false; });
      open = k;
      var id = pairs.ids[k], text = pairs.texts[k], own = pairs.series[id], share = pairs.shares[id];
      panel.textContent = "";
      panel.hidden = false;
      panel.appendChild(make("div", "tag", "prompt of pair " + id));
      panel.appendChild(make("div", "text", text[0] || "text not recorded"));
      if (share) panel.appendChild(make("p", "small", "Tokens below each response: the more colour, the larger the token's share of the inner product of the two gradients at step " + share.step + " (orange entangles, blue disentangles); point at one for its share."));
      response("chosen", text[1], share && share.chosen);
      response("rejected", text[2], share && share.rejected);
      if (own) {
        over("Log-probability", "nats", own.logps, own.steps);
        over("Pushes on chosen", "nats a step", own.pushes.chosen, own.pushes.chosen.steps);
        over("Pushes on rejected", "nats a step", own.pushes.rejected, own.pushes.rejected.steps);
      } else panel.appendChild(make("p", "small", "The steps of this pair are not on this page; the trace has them."));
      body.querySelectorAll("tr").forEach(function (row) { row.classList.toggle("open", row.dataset.pair === id); });
      if (scatter) scatter.redraw();
      if (scroll && panel.getBoundingClientRect().top > innerHeight - 120) panel.scrollIntoView({block: "nearest"});
    }

    // One dot per pair: change of rejected across, change of chosen up.
    function dots(room) {
      if (pairs.columns.length < 2 || pairs.columns[1].label !== "Δ rejected") { room.hidden = true; return; }
      var y = pairs.numbers[0], x = pairs.numbers[1];
      var places = pairs.ids.map(function (id, k) { return k; }).filter(function (k) { return finite(x[k]) && finite(y[k]); });
      places.sort(function (a, b) { return x[a] - x[b]; });
      var out = heading(room, "Movement of each pair: chosen (up) against rejected (across)", pairs.columns[0].unit);
      var xs = places.map(function (k) { return x[k]; }), ys = places.map(function (k) { return y[k]; }), at = null, among = new Set();
      var span = xs.length ? xs[xs.length - 1] - xs[0] : 0, edge = 0.04 * (span || 1), whole = xs.length ? [xs[0] - edge, xs[xs.length - 1] + edge] : [-1, 1];
      function paint(u) {
        among = new Set(order);
        var pen = u.ctx, size = 3 * devicePixelRatio;
        level(u, 0);
        pen.save();
        pen.beginPath();
        pen.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
        pen.clip();
        places.forEach(function (k, n) {
          var colour = ink(ys[n] < 0 ? "line-others" : "line-chosen"), big = k === open;
          pen.globalAlpha = big ? 1 : among.has(k) ? 0.65 : 0.07;
          pen.fillStyle = big ? ink("line-rejected") : colour;
          pen.beginPath();
          pen.arc(u.valToPos(xs[n], "x", true), u.valToPos(ys[n], "y", true), big ? 2 * size : size, 0, 7);
          pen.fill();
        });
        pen.restore();
      }
      var plane = axes(52);
      plane[0].values = plane[1].values;
      scatter = new uPlot({
        width: Math.max(120, room.clientWidth), height: 300, axes: plane, legend: {live: true}, padding: [8, 10, 0, 0],
        scales: {x: {time: false, range: function (u, low, high) { return u.zoomed ? [low, high] : whole; }}},
        series: [
          {label: "Δ rejected", value: function (u, v) { return said(v); }},
          {label: "Δ chosen", stroke: live("line-chosen"), paths: function () { return null; }, points: {show: false}, value: function (u, v) { return said(v); }},
        ],
        cursor: {
          drag: {x: true, y: true, uni: 20},
          dataIdx: function (u, s, nearest) {
            var left = u.cursor.left, upper = u.cursor.top, best = Infinity;
            at = null;
            if (left < 0) return nearest;
            places.forEach(function (k, n) {
              var dx = u.valToPos(xs[n], "x") - left, dy = u.valToPos(ys[n], "y") - upper, far = dx * dx + dy * dy;
              if (among.has(k) && far < best) { best = far; at = n; }
            });
            return at === null ? nearest : at;
          },
        },
        hooks: {
          draw: [paint],
          setSelect: [function (u) { if (u.select.width > 3 || u.select.height > 3) { u.zoomed = true; out.hidden = false; } }],
        },
      }, [xs, ys], room);
      function all() { scatter.zoomed = false; out.hidden = true; scatter.setData(scatter.data); }
      out.addEventListener("click", all);
      scatter.over.addEventListener("dblclick", all);
      scatter.over.addEventListener("click", function () { if (at !== null) show(places[at], true); });
      scatter.root.setAttribute("role", "img");
      scatter.root.setAttribute("aria-label", "Change of rejected and of chosen, one dot per pair; the table below has the same numbers");
      settle(scatter);
      drawn.push({plot: scatter, box: room, height: 300});
    }
    box.hidden = false;
    box.parentNode.classList.add("touched");
    pick();
    dots(find("dots"));
    if (pairs.ids.length) show(0, false);
  }

  // Draw what is visible now, the rest when its fold opens; follow the width and the colours of the window.
  function build(box) { if (box.id === "pair-view") pairView(box); else place(box); }
  function later(box) {
    var fold = box.closest("details");
    while (fold && fold.open) fold = fold.parentElement.closest("details");
    if (!fold) return build(box);
    fold.addEventListener("toggle", function opened() {
      if (!fold.open) return;
      fold.removeEventListener("toggle", opened);
      later(box);
    });
  }
  document.querySelectorAll(".touch, #pair-view").forEach(later);
  window.addEventListener("resize", function () {
    drawn.forEach(function (entry) { if (entry.box.clientWidth) entry.plot.setSize({width: entry.box.clientWidth, height: entry.height}); });
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () {
    drawn.forEach(function (entry) { entry.plot.redraw(); });
  });
})();
