serve(a);
