<?php // home
