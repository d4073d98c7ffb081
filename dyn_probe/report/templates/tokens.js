(function () {
  "use strict";
  var box = document.getElementById("token-view");
  var data = JSON.parse(document.getElementById("token-data").textContent);
  var drawn = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"};
  var find = function (name) { return box.querySelector("[data-part=" + name + "]"); };
  var pick = find("pair"), slider = find("step"), said = find("said"), canvas = find("map");
  var rows = find("rows"), columns = find("columns"), shownStep = find("shown-step"), parts = find("parts");
  var cell = 20, pair = 0, step = 0;

  function visible(token) {
    if (token === "") return "∅";
    return Array.from(token).map(function (c) {
      if (drawn[c]) return drawn[c];
      return /[\p{C}\p{Z}]/u.test(c) ? "\\u" + c.codePointAt(0).toString(16).padStart(4, "0") : c;
    }).join("");
  }
  function number(value) { return value === null ? "undefined" : String(value); }
  function colour(value) {
    if (value === null) return "#d9dde3";
    var end = value > 0 ? [178, 24, 43] : [33, 102, 172], part = Math.min(1, Math.abs(value));
    return "rgb(" + end.map(function (e) { return Math.round(247 + (e - 247) * part); }).join(",") + ")";
  }
  function labels(place, tokens) {
    var every = Math.max(1, Math.ceil(13 / cell));
    place.textContent = "";
    for (var k = 0; k < tokens.length; k += every) {
      var label = document.createElement("span"), room = cell * Math.min(every, tokens.length - k) + "px";
      label.textContent = label.title = visible(tokens[k]);
      label.style[place === rows ? "height" : "width"] = label.style.lineHeight = room;
      if (every > 1) label.style.lineHeight = "13px";
      place.appendChild(label);
    }
  }
  function show() {
    var one = data.pairs[pair], map = one.maps[step], n = one.rejected.length;
    var scale = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = n * cell * scale; canvas.height = one.chosen.length * cell * scale;
    canvas.style.width = n * cell + "px"; canvas.style.height = one.chosen.length * cell + "px";
    pen.scale(scale, scale);
    map.cosine.forEach(function (value, k) {
      pen.fillStyle = colour(value);
      pen.fillRect((k % n) * cell, Math.floor(k / n) * cell, cell - (cell > 6 ? 1 : 0), cell - (cell > 6 ? 1 : 0));
    });
    shownStep.textContent = map.step;
    slider.setAttribute("aria-valuetext", "step " + map.step);
    parts.textContent = "before " + map.parts.before + " · at " + map.parts.at + " · after " + map.parts.after;
  }
  function choose(k) {
    pair = k;
    var one = data.pairs[k], most = Math.max(one.chosen.length, one.rejected.length);
    cell = Math.max(3, Math.min(26, Math.floor(620 / most)));
    slider.max = one.maps.length - 1;
    step = Math.min(step, one.maps.length - 1);
    slider.value = step;
    labels(rows, one.chosen); labels(columns, one.rejected); show();
  }
  data.pairs.forEach(function (one, k) {
    var entry = document.createElement("option");
    entry.value = k;
    entry.textContent = one.pair_id + (one.prompt ? ": " + one.prompt.slice(0, 80) : "");
    pick.appendChild(entry);
  });
  pick.addEventListener("change", function () { choose(Number(pick.value)); });
  slider.addEventListener("input", function () { step = Number(slider.value); show(); });
  canvas.addEventListener("mousemove", function (event) {
    var one = data.pairs[pair], map = one.maps[step], n = one.rejected.length;
    var at = canvas.getBoundingClientRect();
    var j = Math.floor((event.clientX - at.left) / cell), i = Math.floor((event.clientY - at.top) / cell);
    if (i < 0 || j < 0 || i >= one.chosen.length || j >= n) return;
    said.textContent = "chosen " + (i + 1) + " “" + visible(one.chosen[i]) + "” × rejected " + (j + 1) + " “" +
      visible(one.rejected[j]) + "”: inner " + number(map.inner[i * n + j]) + ", cosine " + number(map.cosine[i * n + j]);
  });
  box.hidden = false;
  choose(0);
})();
