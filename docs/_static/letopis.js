// Code and tables that scroll sideways can be reached with the keyboard.
"use strict";

function reach() {
  for (const box of document.querySelectorAll("article pre, .table-wrapper")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", reach);
window.addEventListener("resize", reach);
