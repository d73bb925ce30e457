#!/bin/sh
exec initdb
