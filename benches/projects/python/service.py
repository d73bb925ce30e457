import flask
import numpy

app = flask.Flask(__name__)


@app.get("/")
def sum_of_squares():
    return f"{int((numpy.arange(10) ** 2).sum())}\n"
