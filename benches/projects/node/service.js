const express = require("express");
const { sum, range } = require("lodash");

const app = express();
app.get("/", (_, response) => response.send(`${sum(range(10).map((n) => n * n))}\n`));
app.listen(8000);
